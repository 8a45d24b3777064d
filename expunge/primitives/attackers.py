"""Attackers that are shown who was trained on and who was not, and are then asked about others.

Each learns from one number of each record; all return 1 where a record that is asked about is called a member, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

Numbers = Sequence[float]


def attack_confidence(members: Numbers, others: Numbers, asked: Numbers) -> list[float]:
    """By the probability of the right class: a support vector machine (RBF, C = 3), as SalUn's code has it (Fan et al.,
    2024, arXiv 2310.12508). It is shown as many members as others."""
    shown = min(len(members), len(others))
    return _learn(SVC(C=3, gamma="auto"), members[:shown], others[:shown], asked)


def attack_entropy(members: Numbers, others: Numbers, asked: Numbers) -> list[float]:
    """By the entropy of the answer: a balanced logistic regression, as SSD's code has it (Foster et al., 2024,
    arXiv 2308.07707)."""
    return _learn(LogisticRegression(class_weight="balanced"), members, others, asked)


def _learn(attacker: SVC | LogisticRegression, members: Numbers, others: Numbers, asked: Numbers) -> list[float]:
    shown, questions = (np.asarray(each, dtype=np.float64)[:, None] for each in ([*members, *others], asked))
    attacker.fit(shown, [1] * len(members) + [0] * len(others))
    said: list[float] = attacker.predict(questions).astype(float).tolist()
    return said

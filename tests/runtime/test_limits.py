"""Programs of somebody else's: what loops, what writes without end, and what takes long in a single step."""

import resource
import signal

import pytest

from expunge.data.chat import Chat
from expunge.errors import ModelRefused
from expunge.runtime.limits import TakesTooMuchError, set_limits, try_apart
from tests.conftest import CHAT

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(x='xxxxxxxxxxxxxxxx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.mark.parametrize(
    "template", [LOOP, "{{ 'x' * 1000000000 }}", DOUBLE, "{{ 9 ** 99999999999 }}", "{{ 'x' * 20000000 }}"]
)
def test_a_template_that_takes_too_much_is_refused(template: str, chat, monkeypatch):  # M13
    monkeypatch.setattr(chat, "chat_template", template + CHAT)
    monkeypatch.setattr("expunge.data.chat.set_limits", lambda: set_limits(seconds=0.3, memory=1 << 28))
    monkeypatch.setattr("expunge.runtime.limits.SECONDS", 1.0)
    with pytest.raises(ModelRefused, match="chat template takes more than"):
        Chat.of(chat, {})


def test_a_template_within_its_limits_is_rendered_and_the_limits_are_gone(chat):
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    assert Chat.of(chat, {}).after.startswith("<|end|>")
    assert try_apart(CHAT + "{{ 2 * 3 }}")
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_time_is_that_of_the_processor():
    def work() -> None:
        with set_limits(seconds=0.05):
            while True:
                pass

    with pytest.raises(TakesTooMuchError):
        work()

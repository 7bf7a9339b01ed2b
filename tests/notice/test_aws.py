"""AWS's metadata service over real HTTP: what it says becomes a notice, and its faults are survived."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from outlast.drill.metadata import (
    AWS_ACTION,
    AWS_LIFECYCLE,
    AWS_MAINTENANCE,
    AWS_REBALANCE,
    TOKEN,
    metadata_service,
)
from outlast.notice.aws import OTHERS_EVERY_S, AwsMetadata
from outlast.notice.threaded import NotHere
from outlast.notice.transport import HttpTransport

NOW_S = 1000.0
NOW_UTC = datetime(2020, 4, 24, 17, 9, 44, tzinfo=UTC)


@pytest.fixture
def service():
    with metadata_service() as service:
        yield service


@pytest.fixture
def aws(service):
    metadata = AwsMetadata(HttpTransport(service.url), is_ec2=True)
    yield metadata
    metadata.close()


def look(metadata, later_s=0.0):
    return metadata.look(NOW_S + later_s, NOW_UTC + timedelta(seconds=later_s))


def only(polled):
    assert len(polled.notices) == 1, polled
    return polled.notices[0]


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_interruption_is_a_notice_with_its_deadline(service, aws, action):
    """The body as AWS documents it; said once, however often it is answered."""
    assert look(aws).notices == ()
    service.say(AWS_ACTION, f'{{"action": "{action}", "time": "2020-04-24T17:11:44Z"}}')
    notice = only(look(aws, 1))
    assert (notice.kind, notice.deadline_s) == ("machine", NOW_S + 120)
    assert notice.deadline_utc == datetime(2020, 4, 24, 17, 11, 44, tzinfo=UTC)
    assert action in notice.source
    assert look(aws, 2).notices == ()


def test_a_deadline_moved_earlier_is_the_same_notice(service, aws):
    """The id stays, the deadline follows."""
    service.say(AWS_ACTION, {"action": "terminate", "time": "2020-04-24T17:11:44Z"})
    first = only(look(aws))
    service.say(AWS_ACTION, {"action": "terminate", "time": "2020-04-24T17:10:44Z"})
    second = only(look(aws, 1))
    assert (second.id, second.deadline_s) == (first.id, NOW_S + 60)


def test_an_interruption_taken_back_is_cancelled_and_the_next_is_another(service, aws):
    """404 before the deadline takes it back."""
    said = {"action": "terminate", "time": "2020-04-24T17:11:44Z"}
    service.say(AWS_ACTION, said)
    first = only(look(aws))
    service.say(AWS_ACTION, None)
    gone = only(look(aws, 1))
    assert (gone.id, gone.cancelled) == (first.id, True)
    service.say(AWS_ACTION, said)
    assert only(look(aws, 2)).id != first.id


def test_a_rebalance_is_a_hint_that_is_not_sure(service, aws):
    """No deadline, low confidence."""
    service.say(AWS_REBALANCE, '{"noticeTime": "2020-11-05T08:22:00Z"}')
    notice = only(look(aws))
    assert (notice.kind, notice.deadline_s) == ("hint", None)
    assert notice.confidence < 0.5


@pytest.mark.parametrize(
    ("now_utc", "kind"),
    [
        (datetime(2019, 1, 20, 9, 0, 43, tzinfo=UTC), "hint"),
        (datetime(2019, 1, 21, 8, 51, 0, tzinfo=UTC), "machine"),
        (datetime(2019, 1, 21, 9, 5, 0, tzinfo=UTC), "hint"),
    ],
)
def test_maintenance_is_a_hint_until_it_is_near(service, aws, now_utc, kind):
    """More than 10 minutes off, or begun long ago without this machine going: nothing ends for it. Completed: none."""
    event = {
        "NotBefore": "21 Jan 2019 09:00:43 GMT",
        "Code": "system-reboot",
        "Description": "scheduled reboot",
        "EventId": "instance-event-0d59937288b749b32",
        "NotAfter": "21 Jan 2019 09:17:23 GMT",
        "State": "active",
    }
    service.say(AWS_MAINTENANCE, [event, {**event, "EventId": "instance-event-1", "State": "completed"}])
    assert only(aws.look(NOW_S, now_utc)).kind == kind


MAINTENANCE = {
    "NotBefore": "24 Apr 2020 17:21:24 GMT",
    "Code": "system-reboot",
    "EventId": "instance-event-1",
    "State": "active",
}
"""700 s after `NOW_UTC`."""


def test_maintenance_that_was_near_stays_an_end_when_its_time_comes(service, aws):
    """The machine has not been spared by that: whoever was told to leave leaves."""
    service.say(AWS_MAINTENANCE, [MAINTENANCE])
    assert only(look(aws)).kind == "hint"
    near = only(look(aws, 110))
    assert (near.kind, near.deadline_s) == ("machine", NOW_S + 700)
    assert look(aws, 701).notices == ()
    assert look(aws, 720).notices == ()


def test_maintenance_that_was_near_and_is_put_off_is_a_hint_again(service, aws):
    """An hour later is far off; near once more, it is an end once more."""
    service.say(AWS_MAINTENANCE, [MAINTENANCE])
    near = only(look(aws, 110))
    service.say(AWS_MAINTENANCE, [{**MAINTENANCE, "NotBefore": "24 Apr 2020 18:21:24 GMT"}])
    off = only(look(aws, 120))
    assert (off.id, off.kind, off.deadline_s) == (near.id, "hint", NOW_S + 4300)
    assert only(look(aws, 3800)).kind == "machine"


@pytest.mark.parametrize(
    "unbelievable", [{**MAINTENANCE, "EventId": "instance-event-2", "NotBefore": "tomorrow"}, {}]
)
def test_maintenance_that_cannot_be_believed_hides_no_other(service, aws, unbelievable):
    """Each event is judged by itself, and one that stood stands as it was."""
    service.say(AWS_MAINTENANCE, [unbelievable, MAINTENANCE])
    polled = look(aws, 110)
    assert only(polled).kind == "machine"
    assert "not as documented" in polled.warnings[0]
    service.say(AWS_MAINTENANCE, [{**MAINTENANCE, "NotBefore": "tomorrow"}])
    polled = look(aws, 120)
    assert polled.notices == ()
    assert "not as documented" in polled.warnings[0]
    service.say(AWS_MAINTENANCE, [])
    assert only(look(aws, 130)).cancelled


def test_scaling_in_ends_this_machine(service, aws):
    """`InService` says nothing; `Terminated` names no time."""
    service.say(AWS_LIFECYCLE, "InService")
    assert look(aws).notices == ()
    service.say(AWS_LIFECYCLE, "Terminated")
    notice = only(look(aws, OTHERS_EVERY_S))
    assert (notice.kind, notice.deadline_s) == ("machine", None)


def test_a_token_is_renewed_before_it_ends_and_when_it_is_refused(service, aws):
    """One token serves many looks; at nine tenths of its life, or after a 401, there is another."""
    service.token_ttl_s = 100
    for later_s in (0, 1, 2):
        look(aws, later_s)
    assert service.times_asked(TOKEN) == 1
    look(aws, 91)
    assert service.times_asked(TOKEN) == 2
    service.tokens.clear()
    service.say(AWS_ACTION, {"action": "stop", "time": (NOW_UTC + timedelta(seconds=200)).strftime("%FT%TZ")})
    assert only(look(aws, 92)).kind == "machine"
    assert service.times_asked(TOKEN) == 3


def test_a_fault_of_one_path_leaves_the_others_and_cancels_nothing(service, aws):
    """500 is a warning; what stood still stands, and what else is said is heard."""
    service.say(AWS_ACTION, {"action": "terminate", "time": "2020-04-24T17:11:44Z"})
    only(look(aws))
    service.faults[AWS_ACTION] = 500
    service.say(AWS_LIFECYCLE, "Terminated")
    polled = look(aws, OTHERS_EVERY_S)
    assert only(polled).source == "AWS Auto Scaling terminates"
    assert len(polled.warnings) == 1
    assert "500" in polled.warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        "soon",
        "{}",
        '{"action": "stop"}',
        '{"action": 3, "time": "2020-04-24T17:11:44Z"}',
        '{"action": "stop", "time": "1970-01-01T00:00:00Z"}',
        '{"action": "stop", "time": "later"}',
        "\x00",
    ],
)
def test_a_body_that_is_not_as_documented_is_a_warning(service, aws, body):
    """No notice comes of it, and listening goes on; each time in the same words, which are said once."""
    service.say(AWS_ACTION, body)
    polled = look(aws)
    assert polled.notices == ()
    assert "not as documented" in polled.warnings[0]
    assert look(aws, 60).warnings == polled.warnings


def test_an_answer_without_end_is_not_read_to_its_end(service, aws):
    """64 KiB are more than any notice."""
    service.say(AWS_ACTION, "x" * 70_000)
    assert "more than" in look(aws).warnings[0]


@pytest.mark.parametrize("status", [404, 405])
def test_no_token_service_is_not_aws(service, status):
    """Where the firmware does not say EC2, the source ends with one line."""
    service.faults[TOKEN] = status
    metadata = AwsMetadata(HttpTransport(service.url), is_ec2=False)
    with pytest.raises(NotHere, match="not AWS"):
        look(metadata)
    metadata.close()
    with pytest.raises(NotHere, match="not AWS"):
        look(AwsMetadata(HttpTransport("http://127.0.0.1:1"), is_ec2=False))


class Impatient(HttpTransport):
    """Waits a tenth as long."""

    def request(self, method, path, headers, body=None, timeout_s=2.0):
        return super().request(method, path, headers, body, timeout_s / 10)


def test_a_token_that_a_container_cannot_get_names_the_cure(service):
    """On EC2 a PUT that is not answered is the hop limit; once it is answered, all is heard."""
    aws = AwsMetadata(Impatient(service.url), is_ec2=True)
    held = service.slow[TOKEN] = threading.Event()
    with pytest.raises(TimeoutError, match="--http-put-response-hop-limit 2"):
        look(aws)
    held.set()
    service.say(AWS_ACTION, {"action": "terminate", "time": "2020-04-24T17:11:44Z"})
    assert only(look(aws, 1)).kind == "machine"
    aws.close()

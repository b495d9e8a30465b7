"""What becomes of the results of parked messages that are removed: their tasks end as if they had been revoked."""

from __future__ import annotations

from typing import Any

from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from celery_ext.config import runtime
from celery_ext.lanes import lane_name
from celery_ext.outcome import cancel
from celery_ext.parcel import contents
from slotline.errors import MessagePurgedError
from slotline.pools._purging import Purged
from slotline.pools._tokens import lane_id_of

logger = get_logger(__name__)


class Revoking:
    """Makes the tasks of an app's messages ``REVOKED``, so that chords fail and whoever asks has an answer.

    Args:
        app: The app; its tasks are imported when there is a message.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._is_ready = False

    def __call__(self, purged: Purged) -> bool:
        """Revoke the task of a message; return false if it is none of this app's.

        Raises:
            Exception: The result backend cannot be reached.
        """
        request = self._request_of(purged)
        if request is None:
            return False
        cancel(request, str(MessagePurgedError(purged.pool)))
        return True

    def _request_of(self, purged: Purged) -> Any:
        app = self._app
        if not self._is_ready:
            app.set_current()  # as a worker does: chords look for the current app
            app.loader.import_default_modules()
            self._is_ready = True
        try:
            accept = prepare_accept_content(app.conf.accept_content)  # type: ignore[no-untyped-call] # kombu ships no types
            message: Any = Message(**contents(purged.message, accept))  # type: ignore[no-untyped-call] # the same
            if not self._is_here(message, purged.lane_id):
                return None
            if "task" in message.headers:
                return Request(message, app=app)
            body, headers, decoded, utc = proto1_to_proto2(message, message.decode())
            return Request(message, app=app, body=body, headers=headers, decoded=decoded, utc=utc)
        except NotRegistered as error:
            logger.warning("%s stays parked: its task %s is not known here", purged.owner, error)
        except Exception as error:  # noqa: BLE001 - of another queue or app, whatever that wrote
            logger.debug("%s stays parked: %r", purged.owner, error)
        return None

    def _is_here(self, message: Any, lane_id: str) -> bool:
        app = self._app
        room = runtime(app).config.room or app.connection_for_read().virtual_host
        queues = {*app.amqp.queues, message.delivery_info.get("routing_key")}
        return lane_id in {lane_id_of(lane_name(room, queue)) for queue in queues}

"""What is on NATS, every event and a word of the projections, held to `proto/asyncapi.yaml`, and the events read by the
SDK of CloudEvents.

Run by `cargo xtask contracts`, with the addresses of `.daybook/dev.env` in its environment.
"""

import asyncio
import functools
import json
import os
import re
import sys
from pathlib import Path

import jsonschema_rs
import nats
import yaml
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from scenario import Server, placed_and_replayed

PROTO = Path("proto").absolute()
PARTITION = 0
DEADLINE_SECONDS = 10


class Channel:
    """A channel, as it is described."""

    def __init__(self, description, name):
        self.description = description
        channel = description["channels"][name]
        parts = channel["address"].split(".")
        self.address = re.compile(r"\.".join("[^.]+" if part.startswith("{") else part for part in parts))
        self.messages = {name: self._validators(message["$ref"]) for name, message in channel["messages"].items()}

    def _validators(self, reference):
        message = self.description
        for part in reference.removeprefix("#/").split("/"):
            message = message[part]
        return self._validator(message.get("headers", {})), self._validator(message["payload"])

    def _validator(self, schema):
        whole = {"components": self.description["components"], **schema}
        return validator(whole, base_uri=PROTO.joinpath("asyncapi.yaml").as_uri())

    def hold(self, name, message):
        """Holds a message to the description of this name."""
        assert self.address.fullmatch(message.subject), message.subject
        headers, payload = self.messages[name]
        headers.validate(message.headers or {})
        payload.validate(json.loads(message.data) if message.data else "")


def validator(schema, **options):
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, retriever=retrieve, **options)


def retrieve(uri):
    """A schema in a file of its own."""
    return json.loads(Path(uri.removeprefix("file://")).read_text(encoding="utf-8"))


@functools.cache
def payload_schema(event_type, version):
    return validator(json.loads(PROTO.joinpath("schemas", f"{event_type}.v{version}.json").read_text(encoding="utf-8")))


def is_read_by_the_sdk(message, position):
    """The SDK finds in the headers what the message says about itself."""
    event = from_http_event(HTTPMessage(headers=message.headers, body=message.data))
    assert event.get_specversion() == "1.0"
    assert event.get_id() == message.headers["ce-id"]
    assert event.get_source() == f"/daybook/log/{PARTITION}"
    assert event.get_type() == message.headers["ce-type"]
    assert event.get_time().tzinfo is not None
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == json.loads(message.data), event.get_data()
    assert int(message.headers["daybook-position"]) == position


async def recorded_events(stream, events):
    """All that is stored, in order, without a hole; the types that there are."""
    name = f"daybook_EVENTS_{PARTITION}"
    state = (await stream.stream_info(name)).state
    types = set()
    for position in range(state.first_seq, state.last_seq + 1):
        message = await stream.get_msg(name, position)
        if "daybook-body" in message.headers:
            events.hold("reference", message)
        else:
            events.hold("event", message)
            of_version = payload_schema(message.headers["ce-type"], message.headers["daybook-schema-version"])
            of_version.validate(json.loads(message.data))
            is_read_by_the_sdk(message, position)
            types.add(message.headers["ce-type"])
    return types


async def progress(connection, applied):
    """What projections say when there is a new event."""
    subscription = await connection.subscribe("daybook.applied.>")
    await connection.flush(DEADLINE_SECONDS)
    placed_and_replayed(Server("DAYBOOK_COMMAND_URL", "DAYBOOK_SERVICE_KEY"), "somebody")
    applied.hold("applied", await subscription.next_msg(DEADLINE_SECONDS))


def samples_are_described():
    """Each frozen sample is what its schema says, and is not any more without a member that it must have."""
    samples = sorted(Path("crates/domain/samples").iterdir())
    assert [sample.name for sample in samples] == sorted(schema.name for schema in PROTO.joinpath("schemas").iterdir())
    for sample in samples:
        event_type, version = sample.stem.rsplit(".v", 1)
        payload = json.loads(sample.read_text(encoding="utf-8"))
        schema = payload_schema(event_type, version)
        schema.validate(payload)
        for name in json.loads(PROTO.joinpath("schemas", sample.name).read_text(encoding="utf-8"))["required"]:
            without = {other: value for other, value in payload.items() if other != name}
            assert not schema.is_valid(without), f"{sample.name} without {name}"


async def main():
    samples_are_described()
    with open(PROTO / "asyncapi.yaml", encoding="utf-8") as file:
        description = yaml.safe_load(file)
    connection = await nats.connect(os.environ["NATS_URL"], connect_timeout=DEADLINE_SECONDS)
    types = await recorded_events(connection.jetstream(), Channel(description, "events"))
    assert {"order.placed", "stock_item.registered"} <= types, types
    await progress(connection, Channel(description, "applied"))
    await connection.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

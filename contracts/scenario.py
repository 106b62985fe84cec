"""An outside program that knows Daybook from its reflection alone: it sends commands, reads them back, and is refused.

Run by `cargo xtask contracts`, with the addresses and keys of `.daybook/dev.env` in its environment.
"""

import json
import os
import pathlib
import sys
import uuid

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

DEADLINE_SECONDS = 10

# What ships with the protos: when a client of gRPC sends again by itself.
SERVICE_CONFIG = (pathlib.Path(__file__).parent.parent / "proto/daybook/service_config.json").read_text()


class Server:
    """One of the services, as its reflection describes it."""

    def __init__(self, url, key):
        options = [("grpc.service_config", SERVICE_CONFIG)]
        self.channel = grpc.insecure_channel(os.environ[url].removeprefix("http://"), options)
        self.metadata = [("authorization", "Bearer " + os.environ[key])]
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def services(self):
        return {name for name in self.database.get_services() if name.startswith("daybook.")}

    def request(self, method, **fields):
        return GetMessageClass(self._method(method).input_type)(**fields)

    def raw(self, method, request, metadata=None):
        """The bytes of the answer."""
        service, name = method.rsplit(".", 1)
        call = self.channel.unary_unary(f"/{service}/{name}", type(request).SerializeToString)
        metadata = self.metadata if metadata is None else metadata
        return call(request, metadata=metadata, timeout=DEADLINE_SECONDS)

    def call(self, method, request, metadata=None):
        return GetMessageClass(self._method(method).output_type).FromString(self.raw(method, request, metadata))

    def refusal(self, method, request, metadata=None):
        """The status that refuses a call, with its details by their names."""
        try:
            answer = self.call(method, request, metadata)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            assert status is not None, f"{error.code()} without details: {error.details()}"
            found = {}
            for any_detail in status.details:
                kind = getattr(details, any_detail.TypeName().removeprefix("google.rpc."))
                found[kind.DESCRIPTOR.name] = kind.FromString(any_detail.value)
            assert "RequestInfo" in found, f"no request id in {list(found)}"
            return error.code(), found
        raise AssertionError(f"{method} was answered: {answer}")

    def _method(self, method):
        service, name = method.rsplit(".", 1)
        return self.pool.FindServiceByName(service).FindMethodByName(name)


def equal(actual, expected):
    assert actual == expected, f"{actual!r} instead of {expected!r}"


def is_healthy(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ["", *server.services()]:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS)
        equal(answer.status, health_pb2.HealthCheckResponse.SERVING)
    try:
        health.Check(health_pb2.HealthCheckRequest(service="daybook.nothing.v1.Nothing"), timeout=DEADLINE_SECONDS)
        raise AssertionError("a service that is not there is healthy")
    except grpc.RpcError as error:
        equal(error.code(), grpc.StatusCode.NOT_FOUND)


def order_of(commands, customer):
    request = commands.request(
        "daybook.orders.v1.OrderService.PlaceOrder",
        request_id=str(uuid.uuid4()),
        customer_id=customer,
        currency="EUR",
        context={"actor": "agent:jane", "reason": "a scenario", "correlation_id": customer},
    )
    request.lines.add(sku="PEN-FINE", quantity=2, unit_price_minor=3450)
    return request


def placed_and_replayed(commands, customer):
    """Places an order, and sends the same bytes again; the order's receipt."""
    method = "daybook.orders.v1.OrderService.PlaceOrder"
    request = order_of(commands, customer)
    first = commands.raw(method, request)
    equal(commands.raw(method, request), first)
    receipt = GetMessageClass(commands.pool.FindMessageTypeByName("daybook.orders.v1.PlaceOrderResponse"))
    return request, receipt.FromString(first).receipt


def stock_is_registered(commands, sku):
    request = commands.request(
        "daybook.stock.v1.StockService.RegisterStockItem", request_id=str(uuid.uuid4()), sku=sku
    )
    receipt = commands.call("daybook.stock.v1.StockService.RegisterStockItem", request).receipt
    assert receipt.stream_id.startswith("stk_"), receipt


def is_read_back(queries, customer, receipt):
    """The order with the receipt's token, and the list that has it."""
    fresh = {"consistency_token": receipt.consistency_token}
    method = "daybook.orders.v1.OrderQueryService.GetOrder"
    order = queries.call(method, queries.request(method, order_id=receipt.stream_id, freshness=fresh)).order
    equal((order.order_id, order.version, order.customer_id), (receipt.stream_id, receipt.stream_version, customer))
    equal((order.total.minor, order.total.currency), (6900, "EUR"))

    method = "daybook.orders.v1.OrderQueryService.ListOrders"
    page = queries.call(method, queries.request(method, customer_id=customer, freshness=fresh))
    equal([order.order_id for order in page.orders], [receipt.stream_id])
    equal(page.next_page_token, "")


def has_its_history(queries, customer, receipt):
    method = "daybook.history.v1.HistoryService.ListStreamEvents"
    page = queries.call(method, queries.request(method, stream_id=receipt.stream_id))
    equal([(event.event_type, event.stream_version) for event in page.events], [("order.placed", 1)])
    metadata = page.events[0].metadata
    equal((metadata.actor, metadata.reason, metadata.correlation_id), ("agent:jane", "a scenario", customer))


def refused(commands, queries, placed, receipt):
    """One refusal of each kind, with the details that the catalogue promises."""
    place = "daybook.orders.v1.OrderService.PlaceOrder"

    code, found = commands.refusal(place, commands.request(place, request_id=str(uuid.uuid4()), currency="XXXX"))
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED"))
    fields = {violation.field for violation in found["BadRequest"].field_violations}
    assert {"/currency", "/lines"} <= fields, fields

    placed.currency = "USD"
    code, found = commands.refusal(place, placed)
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED"))

    ship = "daybook.orders.v1.OrderService.ShipOrder"
    request = commands.request(
        ship, request_id=str(uuid.uuid4()), order_id=receipt.stream_id, shipment_id="parcel-1"
    )
    code, found = commands.refusal(ship, request)
    equal(code, grpc.StatusCode.FAILED_PRECONDITION)
    equal(found["PreconditionFailure"].violations[0].type, found["ErrorInfo"].reason)

    confirm = "daybook.orders.v1.OrderService.ConfirmOrder"
    request = commands.request(
        confirm, request_id=str(uuid.uuid4()), order_id=receipt.stream_id, expected_version=7
    )
    code, found = commands.refusal(confirm, request)
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.ABORTED, "VERSION_CONFLICT"))

    get = "daybook.orders.v1.OrderQueryService.GetOrder"
    request = queries.request(get, order_id=receipt.stream_id)
    code, found = queries.refusal(get, request, metadata=[])
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"))

    operator = [("authorization", "Bearer " + os.environ["DAYBOOK_OPERATOR_KEY"])]
    code, found = queries.refusal(get, request, metadata=operator)
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"))

    request = queries.request(get, order_id="ord_01h455vb4pex5vsknk084sn02q")
    code, found = queries.refusal(get, request)
    equal((code, found["ErrorInfo"].reason), (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"))
    equal(found["ResourceInfo"].resource_name, request.order_id)


def only_unavailable_is_sent_again():
    policies = [config["retryPolicy"] for config in json.loads(SERVICE_CONFIG)["methodConfig"]]
    equal([policy["retryableStatusCodes"] for policy in policies], [["UNAVAILABLE"]])


def main():
    only_unavailable_is_sent_again()
    commands = Server("DAYBOOK_COMMAND_URL", "DAYBOOK_SERVICE_KEY")
    queries = Server("DAYBOOK_QUERY_URL", "DAYBOOK_AUDITOR_KEY")
    projections = Server("DAYBOOK_PROJECTOR_URL", "DAYBOOK_OPERATOR_KEY")
    for server in (commands, queries, projections):
        is_healthy(server)
    customer = f"scenario-{uuid.uuid4()}"
    placed, receipt = placed_and_replayed(commands, customer)
    stock_is_registered(commands, customer)
    is_read_back(queries, customer, receipt)
    has_its_history(queries, customer, receipt)
    refused(commands, queries, placed, receipt)


if __name__ == "__main__":
    sys.exit(main())

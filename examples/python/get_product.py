"""Calls every method of ProductService: python get_product.py ADDRESS

Fails when an answer is not what proto/hotshelf/v1/product_service.proto promises.
"""

import os
import sys
import tempfile
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf import duration_pb2, field_mask_pb2
from google.rpc import error_details_pb2
from google.type import money_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "proto"
CONTRACT = "hotshelf/v1/product_service.proto"

# The deadline of each call, in seconds from now. A call without a deadline can wait for ever.
DEADLINE = 10
# The greatest possible id, which no product has.
ABSENT_ID = 2**63 - 1


def generate_client():
    """Generates the client from the proto, and imports it."""
    well_known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    with tempfile.TemporaryDirectory(prefix="hotshelf-client-") as out:
        flags = [f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(["protoc", *flags, CONTRACT]) != 0:
            sys.exit("cannot generate the client")
        sys.path.insert(0, out)
        from hotshelf.v1 import product_service_pb2, product_service_pb2_grpc

    return product_service_pb2, product_service_pb2_grpc


def expect(holds, what):
    if not holds:
        sys.exit(f"UNEXPECTED: {what}")


def cache_status(call):
    return dict(call.initial_metadata()).get("cache-status", "")


def error_info(error):
    """The google.rpc.ErrorInfo that every error of hotshelf has."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    sys.exit(f"UNEXPECTED: no ErrorInfo in {error}")


def expect_error(call, code, reason):
    try:
        call()
    except grpc.RpcError as error:
        info = error_info(error)
        print(f"  {error.code().name}: {error.details()}")
        print(f"  reason {info.reason}, domain {info.domain}, metadata {dict(info.metadata)}")
        expect(error.code() == code, f"the code {error.code()}, not {code}")
        expect((info.reason, info.domain) == (reason, "hotshelf"), f"the reason {info.reason}, not {reason}")
        return info
    sys.exit(f"UNEXPECTED: a success, not {code}")


def main(address):
    pb, pb_grpc = generate_client()
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=DEADLINE)
        products = pb_grpc.ProductServiceStub(channel)

        print("CreateProduct")
        price = money_pb2.Money(currency_code="EUR", units=24, nanos=950_000_000)
        created = products.CreateProduct(
            pb.CreateProductRequest(product=pb.Product(name="Enamel teapot", price=price)), timeout=DEADLINE
        )
        print(f"  product {created.id}, version {created.version}")
        expect(created.id > 0 and created.version > 0, f"the id {created.id}, the version {created.version}")
        expect(created.name == "Enamel teapot" and created.price == price, f"the product {created}")

        print("GetProduct, with the written version as min_version")
        for _ in range(2):
            got, call = products.GetProduct.with_call(
                pb.GetProductRequest(id=created.id, min_version=created.version), timeout=DEADLINE
            )
            print(f"  version {got.version}, cache-status: {cache_status(call)}")
            expect(got == created, f"the product {got}, not {created}")
            expect(cache_status(call).startswith("hotshelf; "), f"the cache-status {cache_status(call)!r}")

        print("BatchGetProducts, with a repeated id and an id without a product")
        batch = products.BatchGetProducts(
            pb.BatchGetProductsRequest(ids=[created.id, ABSENT_ID, created.id]), timeout=DEADLINE
        )
        print(f"  found {[product.id for product in batch.products]}, not found {list(batch.not_found_ids)}")
        expect([product.id for product in batch.products] == [created.id], "other products")
        expect(list(batch.not_found_ids) == [ABSENT_ID], "other ids that are not found")

        print("UpdateProduct, with the current version as expected_version")
        reprice = pb.UpdateProductRequest(
            product=pb.Product(id=created.id, price=money_pb2.Money(currency_code="EUR", units=19)),
            update_mask=field_mask_pb2.FieldMask(paths=["price"]),
            expected_version=created.version,
        )
        updated = products.UpdateProduct(reprice, timeout=DEADLINE)
        print(f"  version {updated.version}")
        expect(updated.version > created.version, f"the version {updated.version} after {created.version}")
        expect(updated.price.units == 19 and updated.name == created.name, f"the product {updated}")

        print("UpdateProduct again: expected_version is not the current version any more")
        info = expect_error(
            lambda: products.UpdateProduct(reprice, timeout=DEADLINE), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"
        )
        expect(info.metadata["current_version"] == str(updated.version), "another current_version")
        expect(info.metadata["expected_version"] == str(created.version), "another expected_version")

        print("StreamHotKeys, two snapshots")
        snapshots = products.StreamHotKeys(
            pb.StreamHotKeysRequest(limit=3, interval=duration_pb2.Duration(nanos=100_000_000)), timeout=DEADLINE
        )
        for _ in range(2):
            snapshot = next(snapshots)
            hot = ", ".join(f"{key.product_id} ({key.requests_per_second:.1f}/s)" for key in snapshot.hot_keys)
            print(f"  {snapshot.observe_time.ToJsonString()}: {hot or 'nothing is hot'}")
            ranks = [key.rank for key in snapshot.hot_keys]
            expect(ranks == list(range(1, len(ranks) + 1)) and len(ranks) <= 3, f"the ranks {ranks}")
        # The stream would not end by itself.
        snapshots.cancel()

        print("DeleteProduct")
        products.DeleteProduct(pb.DeleteProductRequest(id=created.id), timeout=DEADLINE)
        expect_error(
            lambda: products.GetProduct(pb.GetProductRequest(id=created.id, latest=True), timeout=DEADLINE),
            grpc.StatusCode.NOT_FOUND,
            "PRODUCT_NOT_FOUND",
        )
        print("All as promised.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])

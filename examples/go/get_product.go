// Calls every method of ProductService: get_product ADDRESS
//
// Fails when an answer is not what proto/hotshelf/v1/product_service.proto promises.
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	hotshelfv1 "hotshelf/v1"
)

// The greatest possible id, which no product has.
const absentID = math.MaxInt64

func expect(holds bool, what string, values ...interface{}) {
	if !holds {
		log.Fatalf("UNEXPECTED: "+what, values...)
	}
}

// expectError checks an error by its code and its google.rpc.ErrorInfo, which every error of hotshelf has.
func expectError(err error, code codes.Code, reason string) *errdetails.ErrorInfo {
	answer := status.Convert(err)
	expect(answer.Code() == code, "%v, not %v: %v", answer.Code(), code, err)
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Printf("  %v: %s\n  reason %s, metadata %v\n", code, answer.Message(), info.Reason, info.Metadata)
			expect(info.Reason == reason && info.Domain == "hotshelf", "the reason %s, not %s", info.Reason, reason)
			return info
		}
	}
	log.Fatalf("UNEXPECTED: no ErrorInfo in %v", err)
	return nil
}

func readAndWrite(ctx context.Context, client hotshelfv1.ProductServiceClient) int64 {
	fmt.Println("CreateProduct")
	price := &money.Money{CurrencyCode: "EUR", Units: 24, Nanos: 950_000_000}
	product := &hotshelfv1.Product{Name: "Enamel teapot", Price: price}
	created, err := client.CreateProduct(ctx, &hotshelfv1.CreateProductRequest{Product: product})
	expect(err == nil, "%v", err)
	fmt.Printf("  product %d, version %d\n", created.Id, created.Version)
	expect(created.Id > 0 && created.Version > 0 && created.Name == "Enamel teapot", "%v", created)
	expect(created.Price.Units == price.Units && created.Price.Nanos == price.Nanos, "the price %v", created.Price)

	fmt.Println("GetProduct, with the written version as min_version")
	for i := 0; i < 2; i++ {
		var header metadata.MD
		got, err := client.GetProduct(ctx, &hotshelfv1.GetProductRequest{
			Id:        created.Id,
			Freshness: &hotshelfv1.GetProductRequest_MinVersion{MinVersion: created.Version},
		}, grpc.Header(&header))
		expect(err == nil, "%v", err)
		cacheStatus := strings.Join(header.Get("cache-status"), ", ")
		fmt.Printf("  version %d, cache-status: %s\n", got.Version, cacheStatus)
		expect(proto.Equal(got, created), "the product %v, not %v", got, created)
		expect(strings.HasPrefix(cacheStatus, "hotshelf; "), "the cache-status %q", cacheStatus)
	}

	fmt.Println("BatchGetProducts, with a repeated id and an id without a product")
	batch, err := client.BatchGetProducts(ctx, &hotshelfv1.BatchGetProductsRequest{
		Ids: []int64{created.Id, absentID, created.Id},
	})
	expect(err == nil, "%v", err)
	fmt.Printf("  found %d product, not found %v\n", len(batch.Products), batch.NotFoundIds)
	expect(len(batch.Products) == 1 && batch.Products[0].Id == created.Id, "other products: %v", batch)
	expect(len(batch.NotFoundIds) == 1 && batch.NotFoundIds[0] == absentID, "other ids: %v", batch)

	fmt.Println("UpdateProduct, with the current version as expected_version")
	reprice := &hotshelfv1.UpdateProductRequest{
		Product:         &hotshelfv1.Product{Id: created.Id, Price: &money.Money{CurrencyCode: "EUR", Units: 19}},
		UpdateMask:      &fieldmaskpb.FieldMask{Paths: []string{"price"}},
		ExpectedVersion: &created.Version,
	}
	updated, err := client.UpdateProduct(ctx, reprice)
	expect(err == nil, "%v", err)
	fmt.Printf("  version %d\n", updated.Version)
	expect(updated.Version > created.Version, "the version %d", updated.Version)
	expect(updated.Price.Units == 19 && updated.Name == created.Name, "the product %v", updated)

	fmt.Println("UpdateProduct again: expected_version is not the current version any more")
	_, err = client.UpdateProduct(ctx, reprice)
	info := expectError(err, codes.Aborted, "VERSION_MISMATCH")
	expect(info.Metadata["current_version"] == fmt.Sprint(updated.Version), "another current_version")
	return created.Id
}

func watchHotKeys(ctx context.Context, client hotshelfv1.ProductServiceClient) {
	fmt.Println("StreamHotKeys, two snapshots")
	// The stream would not end by itself.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.StreamHotKeys(ctx, &hotshelfv1.StreamHotKeysRequest{
		Limit:    3,
		Interval: durationpb.New(100 * time.Millisecond),
	})
	expect(err == nil, "%v", err)
	for i := 0; i < 2; i++ {
		snapshot, err := stream.Recv()
		expect(err == nil, "%v", err)
		fmt.Printf("  %v:", snapshot.ObserveTime.AsTime())
		for place, key := range snapshot.HotKeys {
			fmt.Printf(" %d (%.1f/s)", key.ProductId, key.RequestsPerSecond)
			expect(int(key.Rank) == place+1 && place < 3, "the rank %d", key.Rank)
		}
		fmt.Println()
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: get_product ADDRESS")
	}
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure())
	expect(err == nil, "%v", err)
	defer connection.Close()
	client := hotshelfv1.NewProductServiceClient(connection)
	// The deadline of all calls together. A call without a deadline can wait for ever.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	id := readAndWrite(ctx, client)
	watchHotKeys(ctx, client)

	fmt.Println("DeleteProduct")
	_, err = client.DeleteProduct(ctx, &hotshelfv1.DeleteProductRequest{Id: id})
	expect(err == nil, "%v", err)
	_, err = client.GetProduct(ctx, &hotshelfv1.GetProductRequest{
		Id:        id,
		Freshness: &hotshelfv1.GetProductRequest_Latest{Latest: true},
	})
	expectError(err, codes.NotFound, "PRODUCT_NOT_FOUND")
	fmt.Println("All as promised.")
}

// Computes attention of a real transformer layer on an attnd server, compares it with
// float64, measures the smallest call, and shows what the error of a wrong request looks like.
//
//	attnd-example (HOST:PORT | unix:PATH) FOLDER
package main

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kshedden/gonpy"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "attnd-example/attndv1"
)

const (
	allowedError = 1.3e-6 // the error of PyTorch's float32 kernel on the same data
	timedCalls   = 500
)

// serviceConfig makes gRPC retry calls, and use every address of a name.
//
//go:embed attndv1/attention_grpc_service_config.json
var serviceConfig string

// tensor makes the message for a float32 array.
func tensor(elements []float32, shape ...int64) *pb.Tensor {
	data := make([]byte, 0, 4*len(elements))
	for _, x := range elements {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
	}
	return &pb.Tensor{Dtype: pb.DataType_DATA_TYPE_F32, Shape: shape, Payload: &pb.Tensor_Data{Data: data}}
}

// must returns value, or ends the program if there is an error.
func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// loadTensor reads a float32 array.
func loadTensor(path string) *pb.Tensor {
	file := must(gonpy.NewFileReader(path))
	var shape []int64
	for _, extent := range file.Shape {
		shape = append(shape, int64(extent))
	}
	return tensor(must(file.GetFloat32()), shape...)
}

// worstError returns the largest difference: infinite if the lengths differ, NaN for a NaN.
func worstError(got []byte, expected []float64) float64 {
	if len(got) != 4*len(expected) {
		return math.Inf(1)
	}
	worst := 0.0
	for i, want := range expected {
		x := math.Float32frombits(binary.LittleEndian.Uint32(got[4*i:]))
		worst = max(worst, math.Abs(float64(x)-want)) // NaN stays NaN
	}
	return worst
}

// realAttention returns how far the answer is from the expected output.
func realAttention(ctx context.Context, client pb.AttentionServiceClient, folder string) float64 {
	request := &pb.AttentionRequest{
		Query: loadTensor(filepath.Join(folder, "query.npy")),
		Key:   loadTensor(filepath.Join(folder, "key.npy")),
		Value: loadTensor(filepath.Join(folder, "value.npy")),
	}
	start := time.Now()
	reply := must(client.Attention(ctx, request))
	took, stats := time.Since(start), reply.GetStats()
	fmt.Printf("attention     %v by %s %s on %d thread(s): %v of %v\n", reply.GetOutput().GetShape(),
		stats.GetIsa(), stats.GetKernel(), stats.GetThreads(), stats.GetComputeTime().AsDuration(), took)
	expected := must(gonpy.NewFileReader(filepath.Join(folder, "expected.npy")))
	return worstError(reply.GetOutput().GetData(), must(expected.GetFloat64()))
}

// smallestCall returns the p50 of a call that only goes to the server and back.
func smallestCall(ctx context.Context, client pb.AttentionServiceClient) time.Duration {
	one := tensor([]float32{1}, 1, 1)
	times := make([]time.Duration, timedCalls)
	for i := range times {
		start := time.Now()
		must(client.Attention(ctx, &pb.AttentionRequest{Query: one, Key: one, Value: one}))
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[timedCalls/2]
}

// refusedCall sends a key with the wrong head_dim, and prints the error, which names the field.
func refusedCall(ctx context.Context, client pb.AttentionServiceClient) {
	two, three := tensor([]float32{1, 1}, 1, 2), tensor([]float32{1, 1, 1}, 1, 3)
	_, err := client.Attention(ctx, &pb.AttentionRequest{Query: two, Key: three, Value: two})
	refusal := status.Convert(err)
	fmt.Printf("refused       %v", refusal.Code())
	for _, detail := range refusal.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Printf(", %s", detail.GetReason())
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fmt.Printf(" in %s\n              %s\n", violation.GetField(), violation.GetDescription())
			}
		}
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatalf("usage: %s (HOST:PORT | unix:PATH) FOLDER", os.Args[0])
	}
	// By default, grpc-go refuses answers above 4 MiB, does not retry requests above 256 KiB, and
	// sends the tensors through the web proxy that the environment names.
	channel := must(grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(), grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxRetryRPCBufferSize(math.MaxInt32))))
	client := pb.NewAttentionServiceClient(channel)
	// gRPC sends the deadline to the server, which stops computing when it has passed.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	worst := realAttention(ctx, client, os.Args[2])
	fmt.Printf("worst error   %.3e, allowed %.1e\n", worst, allowedError)
	p50 := smallestCall(ctx, client)
	fmt.Printf("smallest call p50 %.1f us of %d\n", float64(p50)/1e3, timedCalls)
	refusedCall(ctx, client)
	if !(worst <= allowedError) { // also true if worst is NaN
		log.Fatal("the answer is off by more than is allowed")
	}
}

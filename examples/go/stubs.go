package main

// The stubs of the contract, made by plugins that go.mod pins; needs protoc. The
// service config goes beside them, since a program embeds only what lies below it.
//go:generate go build -o ../../build/examples/go/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
//go:generate protoc -I ../../proto --plugin=../../build/examples/go/protoc-gen-go --plugin=../../build/examples/go/protoc-gen-go-grpc --go_out=. --go_opt=module=attnd-example,Mattnd/v1/attention.proto=attnd-example/attndv1 --go-grpc_out=. --go-grpc_opt=module=attnd-example,Mattnd/v1/attention.proto=attnd-example/attndv1 attnd/v1/attention.proto
//go:generate cp ../../proto/attnd/v1/attention_grpc_service_config.json attndv1/

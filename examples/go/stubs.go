package main

// Generates the stubs of the contract, with plugins that go.mod pins. Needs protoc. It also
// copies the service config, because a program can embed only files below its own folder.
//go:generate go build -o ../../build/examples/go/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
//go:generate protoc -I ../../proto --plugin=../../build/examples/go/protoc-gen-go --plugin=../../build/examples/go/protoc-gen-go-grpc --go_out=. --go_opt=module=attnd-example,Mattnd/v1/attention.proto=attnd-example/attndv1 --go-grpc_out=. --go-grpc_opt=module=attnd-example,Mattnd/v1/attention.proto=attnd-example/attndv1 attnd/v1/attention.proto
//go:generate cp ../../proto/attnd/v1/attention_grpc_service_config.json attndv1/

// Encodes the plain values of client/types.h as requests of attention.proto.
// Does not copy the elements of tensors to protobuf messages. Does not check
// what the server checks. Uses protobuf, but not gRPC.
#ifndef ATTND_CLIENT_REQUEST_ENCODER_H_
#define ATTND_CLIENT_REQUEST_ENCODER_H_

#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

// Convert the values to those of the contract.
v1::DataType EncodeType(DataType type);
void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto);

// Adds `tensor` to `message` as the field `number`. If the tensor is in shared
// memory, adds its place instead of its elements. If the elements have no owner
// and at least kSmallestPieceBytes, they are not copied, and must stay valid
// until the message is sent.
void AddTensor(int number, const ConstTensor& tensor, OutgoingMessage* message);

// Adds the options to `message` as the field `number`: those in `options`, and
// those in `from_outputs`, which OptionsFrom derives from the outputs of the
// call.
void AddOptions(int number, const AttentionOptions& options,
                v1::AttentionOptions from_outputs, OutgoingMessage* message);

// Returns a request without the elements of its tensors. `from_outputs` are the
// options that OptionsFrom derives from the outputs of the call.
v1::AttentionRequest DescribeRequest(const AttentionInputs& inputs,
                                     const AttentionOptions& options,
                                     v1::AttentionOptions from_outputs);

// Return the requests of Benchmark and MemoryEstimate.
v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options);
v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_REQUEST_ENCODER_H_

// Encodes the request of a forward method as one message. Knows protobuf, but
// not gRPC.
#ifndef ATTND_CLIENT_FORWARD_REQUEST_H_
#define ATTND_CLIENT_FORWARD_REQUEST_H_

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

// A forward method. Self and cross attention send one tensor in place of
// several. If such a call streams, each of these travels by itself, because the
// header of AttentionStream is an AttentionRequest.
enum class Method { kAttention, kSelfAttention, kCrossAttention };

// The arguments of a call. Borrows them.
struct ForwardCall {
  Method method;
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionOptions& options;
};

const char* NameOf(Method method);

// Returns the options that follow from the outputs of a call.
v1::AttentionOptions AskedBy(const AttentionOutputs& outputs);

OutgoingMessage EncodeForward(const ForwardCall& call);

// Returns INVALID_ARGUMENT if an output in shared memory has another size than
// the answer, which the server writes there itself.
absl::Status CheckOutputSizes(const ForwardCall& call);

// Returns whether any tensor lies in shared memory. Such a call cannot stream.
bool SharesMemory(const ForwardCall& call);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_REQUEST_H_

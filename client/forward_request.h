// The request of a forward method, as one message. Knows protobuf, not gRPC.
#ifndef ATTND_CLIENT_FORWARD_REQUEST_H_
#define ATTND_CLIENT_FORWARD_REQUEST_H_

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "client/outgoing_message.h"
#include "client/types.h"

namespace attnd::client {

// A forward method. Self and cross attention pass a tensor for several: where
// they stream, each goes by itself, for AttentionStream has no other header.
enum class Method { kAttention, kSelfAttention, kCrossAttention };

// A call's arguments, which the caller has.
struct ForwardCall {
  Method method;
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionOptions& options;
};

const char* NameOf(Method method);

// What a forward method's outputs ask for.
v1::AttentionOptions AskedBy(const AttentionOutputs& outputs);

OutgoingMessage EncodeForward(const ForwardCall& call);

// Where the server itself writes an answer, it must fit before it is made: else
// INVALID_ARGUMENT.
absl::Status CheckRooms(const ForwardCall& call);

// Whether any tensor lies in shared memory, of which no stream knows.
bool SharesMemory(const ForwardCall& call);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_REQUEST_H_

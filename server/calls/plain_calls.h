// Answers the calls that compute no attention: MemoryEstimate and
// GetServerInfo. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_PLAIN_CALLS_H_
#define ATTND_SERVER_CALLS_PLAIN_CALLS_H_

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/tile_scheduler.h"
#include "server/calls/service_context.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Returns the answer of GetServerInfo. Thread-safe.
v1::GetServerInfoResponse DescribeServer(const ServiceContext& context);

// Receives the answer of a call: a serialized message or an error.
using PlainDone = std::function<void(absl::StatusOr<OutgoingMessage>)>;

// These functions answer `received`, the bytes of a request, by calling `done`
// once. If the message is light (SplitIfLight), they do so before they return.
// Otherwise the thread of ServiceContext::decoder calls `done`. `done` must not
// block. A call holds a slot (server/memory/admission.h) while it runs, except
// that an empty message to AnswerServerInfo takes none. `stop` can end a call
// that waits for the decode thread. `caller` is the number of who calls
// (Admission::Admit). `context` and `stop` must live until `done` is called.
void AnswerMemoryEstimate(const ServiceContext& context, uint64_t caller,
                          ReceivedMessage received, const StopSignal& stop,
                          PlainDone done);
void AnswerServerInfo(const ServiceContext& context, uint64_t caller,
                      ReceivedMessage received, const StopSignal& stop,
                      PlainDone done);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_PLAIN_CALLS_H_

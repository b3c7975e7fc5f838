// The calls that are answered at once: they parse, look something up and
// return. Knows no gRPC.
#ifndef ATTND_SERVER_PLAIN_CALLS_H_
#define ATTND_SERVER_PLAIN_CALLS_H_

#include "absl/status/statusor.h"
#include "server/service_context.h"
#include "server/wire_message.h"

namespace attnd::server {

// Messages in, messages out; every one takes a slot while it runs.
absl::StatusOr<ResponsePieces> AnswerMemoryEstimate(
    const ServiceContext& context, const ReceivedMessage& received);
absl::StatusOr<ResponsePieces> AnswerServerInfo(
    const ServiceContext& context, const ReceivedMessage& received);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PLAIN_CALLS_H_

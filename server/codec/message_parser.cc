#include "server/codec/message_parser.h"

#include <utility>

#include "base/status_macros.h"
#include "core/attention_problem.h"

namespace attnd::server {

static_assert(kMaxListedNumbers ==
                  8 * (AttentionProblem::kMaxListedEntries + 1),
              "a message can have seven full lists of options and one shape");

absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes) {
  const int64_t size_bytes = received.size_bytes();
  const auto reserve = [&](int64_t bound_bytes) {
    return reservation.GrowTo(held_bytes + size_bytes + bound_bytes);
  };
  SplitMessage split;
  if (light) {
    ATTND_RETURN_IF_ERROR(reserve(light->bound_bytes));
    split = *std::move(light);
  } else {
    const auto* const type = message.GetDescriptor();
    ReceivedStream measured(received);
    ATTND_ASSIGN_OR_RETURN(const SplitCost cost,
                           MeasureSplit(&measured, size_bytes, type));
    ATTND_RETURN_IF_ERROR(reserve(cost.bound_bytes));
    ReceivedStream stream(received);
    ATTND_ASSIGN_OR_RETURN(split,
                           SplitPayloads(&stream, size_bytes, type, cost));
  }
  ATTND_RETURN_IF_ERROR(ParseHeader(split, message));
  return split;
}

absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message) {
  ATTND_ASSIGN_OR_RETURN(std::optional<SplitMessage> light,
                         SplitIfLight(received, message.GetDescriptor()));
  return ParseMessage(received, std::move(light), reservation, message);
}

}  // namespace attnd::server

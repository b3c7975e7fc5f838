// Parses the requests that arrive, within the memory budget.
#ifndef ATTND_SERVER_CODEC_MESSAGE_PARSER_H_
#define ATTND_SERVER_CODEC_MESSAGE_PARSER_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"
#include "server/memory/admission.h"
#include "wire/message_splitter.h"
#include "wire/received_message.h"

namespace attnd::server {

// Parses `received` into `message`, except for the tensors' bytes. First grows
// `reservation` to the sum of `held_bytes`, which stand for something else, the
// received bytes and the bytes that parsing allocates. `light` is what
// SplitIfLight returned. If it is empty, the time grows with the message.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes = 0);
// Calls SplitIfLight and then ParseMessage. For messages that cannot be long,
// and for threads that no other work waits for.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_MESSAGE_PARSER_H_

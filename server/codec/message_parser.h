// Parses requests that have arrived. Reserves memory in the budget before it
// allocates any.
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

// Parses `received` into `message`, except for the bytes of its tensors, which
// the result locates. `light` is what SplitIfLight returned for `received`. If
// it is empty, the time that this takes grows with the size of the message.
//
// Before it allocates memory, grows `reservation` to the sum of the size of the
// message, the bytes that parsing allocates, and `held_bytes`. `held_bytes` are
// what the reservation holds for other purposes.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes = 0);
// Calls SplitIfLight and then ParseMessage. Use it only if the message cannot
// be long, or if no other work waits for this thread.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_MESSAGE_PARSER_H_

// Parses requests that have arrived. Reserves bytes of the server's memory
// budget before it allocates any memory.
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

// Parses `received` into `message`, except for the bytes of its tensors; the
// result says where in `received` these are. `light` is what SplitIfLight
// (wire/message_splitter.h) returned for `received`. If it is empty, the time
// that this takes grows with the size of the message.
//
// Before it allocates memory, grows `reservation` to the sum of three numbers:
// the size of the message, the bytes that parsing allocates, and `held_bytes`,
// which the reservation already holds for other purposes.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes = 0);
// Calls SplitIfLight and then the function above. Use it only for messages that
// cannot be long, or in a thread that no other work waits for.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_MESSAGE_PARSER_H_

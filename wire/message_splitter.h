// Reads messages of protobuf's wire format, for both ends. Splits a received
// message into a small header, which protobuf parses, and the bytes of its
// tensors, which stay where they are. So a tensor is copied only once: from the
// buffers of the network to the memory where it is used.
#ifndef ATTND_WIRE_MESSAGE_SPLITTER_H_
#define ATTND_WIRE_MESSAGE_SPLITTER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "google/protobuf/message.h"
#include "wire/received_message.h"

namespace attnd {

// The most fields that a message may have. Fields of nested messages and groups
// count, and so do unknown fields. A number of a list that is not packed counts
// as a number instead. A request needs fewer than 64 fields.
inline constexpr int64_t kMaxFields = 1024;

// The most numbers that the lists of a message may have together: as many as
// seven lists of options and one shape can need, of 65,537 numbers each. A
// tensor's `values` count only if they are not packed.
inline constexpr int64_t kMaxListedNumbers = 8 * 65537;

// A message is light if it has at most this many numbers and bytes of text
// together. Walking, parsing and checking a light message takes less than half
// a millisecond, so a thread that others wait for may do it.
inline constexpr int64_t kMaxLightNumbers = 1024;

// What splitting and parsing would allocate, found without allocating.
struct SplitCost {
  int64_t header_bytes = 0;
  int64_t payload_count = 0;
  // Upper bound of header, payload table and parsed message together. One
  // byte on the wire may become eight in memory, times three while an array
  // grows.
  int64_t bound_bytes = 0;
};

// The message without its tensors' bytes. A `data` field holds a token of
// kPayloadTokenBytes in their place, so merges, duplicates and oneofs keep
// protobuf's own meaning: the field that survives says which payload counts.
// Unknown fields are checked and left out: nothing reads them, and in memory
// they would grow fiftyfold.
struct SplitMessage {
  std::string header;
  std::vector<PayloadRange> payloads;
  // An upper bound of the bytes that splitting took at its peak and that
  // parsing will take.
  int64_t bound_bytes = 0;
};

inline constexpr int64_t kPayloadTokenBytes = 8;

// All functions that split read `size_bytes` bytes of `input`, or all of
// `received`, as a message of type `type`. They return INVALID_ARGUMENT for:
// - what protobuf's parser refuses, except for the contents of packed fields
//   and of text, which are checked when the header is parsed;
// - more than kMaxFields fields or kMaxListedNumbers numbers. They stop at the
//   first one too many and do not read the rest.
absl::StatusOr<SplitCost> MeasureSplit(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type);
// Allocates what `cost` says, which MeasureSplit returned for the same bytes.
absl::StatusOr<SplitMessage> SplitPayloads(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type, const SplitCost& cost);
// Splits in one walk, for a caller that reserves no memory beforehand.
// Allocates up to three times the bytes of the message that are not payload.
absl::StatusOr<SplitMessage> SplitPayloads(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type);
// Splits a light message in one walk. Returns nothing if the message is not
// light. Allocates less than 160 KiB, whatever the message is.
absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type);
absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type);

// Parses the header of `split` into `message` and frees the header. Returns
// INVALID_ARGUMENT if protobuf refuses it.
absl::Status ParseHeader(SplitMessage& split,
                         google::protobuf::Message& message);

// Returns the payload that a parsed header's `data` field stands for. An empty
// `data` field stands for an empty payload.
const PayloadRange& PayloadOf(const SplitMessage& message,
                              absl::string_view data);

// Returns INVALID_ARGUMENT for bytes that are no message of `message_type`.
absl::Status MalformedMessageError(absl::string_view message_type);

}  // namespace attnd

#endif  // ATTND_WIRE_MESSAGE_SPLITTER_H_

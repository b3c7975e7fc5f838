// Reads messages in protobuf's wire format, in the client and in the server.
// Splits a received message into the bytes of its tensors, which stay where
// they are, and a small rest (the header), which protobuf parses. So each
// tensor is copied only once: from the buffers that the network filled to the
// memory where it is used.
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
// and unknown fields count. The numbers of a repeated field that is not packed
// count as listed numbers instead (kMaxListedNumbers). A request needs fewer
// than 64 fields.
inline constexpr int64_t kMaxFields = 1024;

// The most numbers that all repeated fields of a message may have together. A
// valid request can have 65,537 numbers in each of seven lists of options and
// in one shape. The `values` of a tensor count only if they are not packed.
inline constexpr int64_t kMaxListedNumbers = 8 * 65537;

// A message is light if the numbers in its lists and the bytes of its text
// fields are together at most this many. Splitting, parsing and checking a
// light message takes less than half a millisecond. So gRPC's threads, which
// other calls need too, may do it.
inline constexpr int64_t kMaxLightNumbers = 1024;

// How many bytes splitting and parsing a message would allocate. MeasureSplit
// computes this without allocating anything.
struct SplitCost {
  int64_t header_bytes = 0;
  int64_t payload_count = 0;
  // An upper bound of the bytes of the header, the list of payloads and the
  // parsed message together. One byte on the wire can become eight bytes in
  // memory, and three times as many while an array grows.
  int64_t bound_bytes = 0;
};

// A message without the bytes of its tensors.
//
// In the header, each `data` field of a tensor holds a token of
// kPayloadTokenBytes in place of the tensor's bytes (its payload). PayloadOf
// finds the payload of a token. If a client sends a field twice, or several
// fields of a oneof, protobuf decides which one counts, and the token that is
// left after parsing tells its payload.
//
// The header has no unknown fields. They are checked and then left out, because
// nothing reads them and because protobuf would take fifty times their size to
// store them.
struct SplitMessage {
  std::string header;
  std::vector<PayloadRange> payloads;
  // An upper bound of the bytes that splitting held at its peak, and that
  // parsing will take.
  int64_t bound_bytes = 0;
};

inline constexpr int64_t kPayloadTokenBytes = 8;

// The functions below read `size_bytes` bytes of `input`, or all of `received`,
// as a message of type `type`. They return INVALID_ARGUMENT in these cases:
//
// - Protobuf's parser would refuse the message. The contents of packed fields
//   and of text are an exception: ParseHeader checks them.
// - The message has more than kMaxFields fields or kMaxListedNumbers numbers.
//   The functions stop at the first one that exceeds the limit, and do not read
//   the rest.

// Measures the message without allocating anything.
absl::StatusOr<SplitCost> MeasureSplit(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type);
// Splits the message and allocates exactly what `cost` says. `cost` must be
// what MeasureSplit returned for the same bytes.
absl::StatusOr<SplitMessage> SplitPayloads(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type, const SplitCost& cost);
// Splits the message without measuring it first, for a caller that does not
// reserve memory for it. Allocates up to three times the size of the message,
// not counting the payloads.
absl::StatusOr<SplitMessage> SplitPayloads(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type);
// Splits the message if it is light (kMaxLightNumbers), and otherwise returns
// nullopt. Allocates less than 160 KiB for any message.
absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type);
absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type);

// Parses the header of `split` into `message` and then frees the header.
// Returns INVALID_ARGUMENT if protobuf refuses the header.
absl::Status ParseHeader(SplitMessage& split,
                         google::protobuf::Message& message);

// Returns where in the received message the bytes of a tensor are. `data` is
// the `data` field of the tensor after ParseHeader, which has the token. If it
// is empty, the tensor has no bytes, and the result is an empty range.
const PayloadRange& PayloadOf(const SplitMessage& message,
                              absl::string_view data);

// Returns the INVALID_ARGUMENT error for bytes that are not a message of type
// `message_type`.
absl::Status MalformedMessageError(absl::string_view message_type);

}  // namespace attnd

#endif  // ATTND_WIRE_MESSAGE_SPLITTER_H_

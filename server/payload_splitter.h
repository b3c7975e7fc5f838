// Parts a received message into a small header, which protobuf parses, and the
// tensors' bytes, which stay where they are: a tensor is copied once, from the
// network's buffers to where the kernel reads it. Knows the wire format and
// descriptors; nothing of gRPC or of what the fields mean.
#ifndef ATTND_SERVER_PAYLOAD_SPLITTER_H_
#define ATTND_SERVER_PAYLOAD_SPLITTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/zero_copy_stream.h"

namespace attnd::server {

// Where one tensor's bytes lie in the received message.
struct PayloadRange {
  int64_t offset = 0;
  int64_t size_bytes = 0;
};

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
};

inline constexpr int64_t kPayloadTokenBytes = 8;

// Both read `size_bytes` bytes of `input`, a message of type `type`, and
// refuse (INVALID_ARGUMENT) what protobuf's parser refuses, but for the
// contents of packed fields, on which the parse of the header decides.
// SplitPayloads makes room for what `cost` says beforehand, if anything, and
// leaves there what it came to.
absl::StatusOr<SplitCost> MeasureSplit(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type);
absl::StatusOr<SplitMessage> SplitPayloads(
    google::protobuf::io::ZeroCopyInputStream* input, int64_t size_bytes,
    const google::protobuf::Descriptor* type, SplitCost* cost);

// The payload that a parsed header's `data` field stands for.
const PayloadRange& PayloadOf(const SplitMessage& message,
                              absl::string_view data);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PAYLOAD_SPLITTER_H_

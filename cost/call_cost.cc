#include "cost/call_cost.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <type_traits>

#include "base/attention_options.h"
#include "base/checked_math.h"

namespace attnd {
namespace {

// The most bytes that the lists in a call's options take. A list may have one
// or more numbers for each batch entry. The sums cannot overflow, because the
// lists themselves are in memory.
struct ListCost {
  int64_t wire_bytes = 0;  // in the request's message
  int64_t held_bytes = 0;  // as received, as parsed and as decoded
};

ListCost CostOfLists(const AttentionOptions& options) {
  // Each byte on the wire is received, and copied to the header that is parsed.
  // A number has at least one byte on the wire and 8 bytes when it is parsed,
  // and exists up to three times while protobuf's array grows.
  constexpr int64_t kHeldPerWireByte = 2 + 3 * 8;
  constexpr int64_t kDecodedBytes = 2 * 8;
  constexpr int64_t kListWireBytes = 16;  // tag and length
  // The parsed message, its payload, and the record of where the payload is.
  constexpr int64_t kTensorBytes = 640;
  ListCost cost;
  const auto add_list = [&](const auto& list) {
    if (list.empty()) return;
    int64_t bytes = kListWireBytes;
    for (const auto element : list) {
      if constexpr (sizeof(element) == sizeof(int64_t)) {
        // A varint has 7 bits in a byte.
        const auto bits = std::bit_width(static_cast<uint64_t>(element) | 1U);
        bytes += CeilDiv(static_cast<int64_t>(bits), 7);
      } else {
        bytes += int64_t{sizeof(element)};
      }
    }
    cost.wire_bytes += bytes;
    cost.held_bytes += bytes * kHeldPerWireByte +
                       static_cast<int64_t>(list.size()) * kDecodedBytes;
  };
  ForEachOption([&](const char*, auto member, const auto&...) {
    const auto& option = member(options);
    using Option = std::remove_cvref_t<decltype(option)>;
    if constexpr (kIsList<Option>) {
      add_list(option);
    } else if constexpr (std::is_same_v<Option, std::optional<TensorSpec>>) {
      if (!option) return;
      cost.wire_bytes += kListWireBytes;
      cost.held_bytes += kTensorBytes;
      add_list(option->shape);
    }
  });
  return cost;
}

// Returns what gRPC holds for an inline message in addition to its bytes. gRPC
// receives a message in blocks of 64 KiB, and a few blocks are not full. For
// each frame of HTTP/2 there is a record of about 100 bytes, and most clients
// send frames of 16 KiB. tests/e2e/accuracy_test.py measures both.
int64_t ReceivingBytes(int64_t message_bytes) {
  constexpr int64_t kBlocksBytes = 3 * (int64_t{64} << 10);
  constexpr int64_t kBytesPerRecordByte = 128;
  return std::min(message_bytes, kBlocksBytes) +
         message_bytes / kBytesPerRecordByte;
}

// Returns what the server holds for its own records of a call: its objects, the
// pages that blocks only partly fill, and the list of the pieces of the inputs
// that workers copy, with about 100 bytes for each 256 KiB.
int64_t RecordBytes(int64_t copied_bytes) {
  constexpr int64_t kCallBytes = int64_t{24} << 10;
  constexpr int64_t kBytesPerRecordByte = 2048;
  return kCallBytes + copied_bytes / kBytesPerRecordByte;
}

}  // namespace

CallCost CostOfCall(const MemoryEstimate& estimate,
                    const AttentionOptions& options,
                    const TensorTransfer& transfer) {
  constexpr int64_t kEnvelopes = 2 * kMessageEnvelopeBytes;  // both ways
  const ListCost lists = CostOfLists(options);
  const int64_t copied_bytes = transfer.copied_bytes;
  int64_t output_bytes = estimate.output_bytes;
  int64_t buffer_bytes = 0;   // for tensors that are being sent
  int64_t message_bytes = 0;  // the same, or a larger message that is kept
  int64_t receiving_bytes = 0;
  int64_t response_bytes = 0;
  int64_t required_bytes = 0;
  switch (transfer.transport) {
    case Transport::kInline:
      buffer_bytes = copied_bytes;
      // The envelope and the lists in the message are counted separately.
      message_bytes =
          std::max(buffer_bytes, transfer.kept_message_bytes -
                                     kMessageEnvelopeBytes - lists.wire_bytes);
      receiving_bytes = ReceivingBytes(message_bytes);
      response_bytes = SaturatingSum({output_bytes, kMessageEnvelopeBytes});
      required_bytes = SaturatingSum({std::max(copied_bytes, output_bytes),
                                      kMessageEnvelopeBytes, lists.wire_bytes});
      break;
    case Transport::kStream:
      // A client cannot send more ahead than the tensors have.
      buffer_bytes =
          std::min(kStreamBufferBytes,
                   SaturatingSum({copied_bytes, ReceivingBytes(copied_bytes),
                                  kMaxChunkBytes + kMessageEnvelopeBytes}));
      message_bytes =
          SaturatingSum({buffer_bytes, transfer.kept_message_bytes});
      // A chunk is never larger than a message may be. Lists are in the header.
      response_bytes = std::min(kMaxChunkBytes + kMessageEnvelopeBytes,
                                transfer.max_message_bytes);
      required_bytes =
          std::max(response_bytes, kMessageEnvelopeBytes + lists.wire_bytes);
      break;
    case Transport::kSharedMemory:
      output_bytes = 0;
      message_bytes = transfer.kept_message_bytes;
      response_bytes = kMessageEnvelopeBytes;
      required_bytes = kMessageEnvelopeBytes + lists.wire_bytes;
      break;
  }
  const int64_t value_copies = transfer.output_as_values ? 2 : 0;
  const int64_t value_bytes = SaturatingProduct({value_copies, output_bytes});
  const int64_t wire_bytes = SaturatingSum(
      {buffer_bytes, receiving_bytes, kEnvelopes, lists.wire_bytes});
  const int64_t computing_bytes =
      SaturatingSum({copied_bytes, output_bytes, estimate.workspace_bytes,
                     message_bytes, receiving_bytes, RecordBytes(copied_bytes),
                     kEnvelopes, lists.held_bytes, value_bytes});
  const int64_t loading_bytes =
      SaturatingSum({transfer.decoding_bytes, copied_bytes});
  return {.peak_bytes = std::max(computing_bytes, loading_bytes),
          .computing_bytes = computing_bytes,
          .answering_bytes = kMessageEnvelopeBytes + lists.held_bytes,
          .wire_bytes = wire_bytes,
          .response_bytes = response_bytes,
          .required_message_bytes = required_bytes};
}

}  // namespace attnd

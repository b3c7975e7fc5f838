// What the lists of an attention call's options cost, which may be long: a
// number or more for each batch entry.
#ifndef ATTND_CORE_OPTIONS_FOOTPRINT_H_
#define ATTND_CORE_OPTIONS_FOOTPRINT_H_

#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/attention_params.h"

namespace attnd {

// Upper bounds, beside the bytes of tensors.
struct OptionsFootprint {
  int64_t wire_bytes = 0;  // in the request's message
  int64_t held_bytes = 0;  // by the call: as received, parsed and decoded
};

inline OptionsFootprint FootprintOf(const AttentionOptions& options) {
  // Received and copied to the header that is parsed: a byte each. Parsed: 8
  // bytes a number of one byte or more, three times while an array grows.
  constexpr int64_t kHeldPerWireByte = 2 + 3 * 8;
  constexpr int64_t kDecodedBytes = 2 * 8;
  constexpr int64_t kListWireBytes = 16;  // tag and length
  constexpr int64_t kTensorBytes = 640;   // a message, a payload and its place
  OptionsFootprint footprint;
  const auto add_list = [&](const auto& list) {
    if (list.empty()) return;
    int64_t bytes = kListWireBytes;
    for (const auto element : list) {
      if constexpr (sizeof(element) == sizeof(int64_t)) {
        // As a varint.
        const auto bits = std::bit_width(static_cast<uint64_t>(element) | 1U);
        bytes += (static_cast<int64_t>(bits) + 6) / 7;
      } else {
        bytes += int64_t{sizeof(element)};
      }
    }
    footprint.wire_bytes += bytes;
    footprint.held_bytes += bytes * kHeldPerWireByte +
                            static_cast<int64_t>(list.size()) * kDecodedBytes;
  };
  const auto add_tensor = [&](const std::vector<int64_t>& shape) {
    footprint.wire_bytes += kListWireBytes;
    footprint.held_bytes += kTensorBytes;
    add_list(shape);
  };
  add_list(options.query_offsets);
  add_list(options.alibi_slopes);
  add_list(options.sink_logits);
  add_list(options.query_lengths);
  add_list(options.key_lengths);
  add_list(options.cu_seqlens_q);
  add_list(options.cu_seqlens_k);
  if (options.bias) add_tensor(options.bias->shape);
  if (options.mask_shape) add_tensor(*options.mask_shape);
  return footprint;
}

}  // namespace attnd

#endif  // ATTND_CORE_OPTIONS_FOOTPRINT_H_

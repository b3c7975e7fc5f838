// Bytes as a received message.
#ifndef ATTND_TESTS_SUPPORT_IN_BLOCKS_H_
#define ATTND_TESTS_SUPPORT_IN_BLOCKS_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "wire/received_message.h"

namespace attnd {

// Returns a copy of `text` in slices of `block_bytes`, so that fields end
// anywhere in a slice. An empty slice follows each of them.
inline ReceivedMessage InBlocks(const std::string& text, size_t block_bytes) {
  auto owner = std::make_shared<const std::string>(text);
  std::vector<ReceivedMessage::Slice> slices;
  for (absl::string_view rest = *owner; !rest.empty();) {
    const absl::string_view slice = rest.substr(0, block_bytes);
    slices.push_back({slice});
    slices.emplace_back();
    rest.remove_prefix(slice.size());
  }
  return {std::move(slices), std::move(owner)};
}

}  // namespace attnd

#endif  // ATTND_TESTS_SUPPORT_IN_BLOCKS_H_

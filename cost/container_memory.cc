#include "cost/container_memory.h"

#include <algorithm>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "wire/message_sizes.h"

namespace attnd {

absl::StatusOr<ContainerMemory> SolveContainerMemory(const CallCost& call,
                                                     Transport transport,
                                                     int64_t concurrency) {
  constexpr int64_t kMib = int64_t{1} << 20;
  const int64_t message_bytes = call.required_message_bytes;
  if (message_bytes > kMaxMessageLimitBytes) {
    // The number can be the largest int64, which stands for larger ones, too.
    return absl::OutOfRangeError(absl::StrCat(
        "the call needs a message of more than ", kMaxMessageLimitBytes,
        " bytes, and no server takes that; the transport stream sends the "
        "tensors in chunks"));
  }
  ContainerMemory memory;
  memory.max_message_bytes =
      std::max(kDefaultMaxMessageBytes,
               std::min(RoundUp(message_bytes, kMib), kMaxMessageLimitBytes));
  memory.need.peak_bytes = SaturatingProduct({call.peak_bytes, concurrency});
  // A stream reserves the memory for its chunks before it receives them.
  if (transport != Transport::kStream) {
    memory.need.arriving_bytes =
        SaturatingProduct({call.wire_bytes, concurrency});
  }
  const std::optional<int64_t> limit_bytes =
      SmallestMemoryLimit(memory.need, memory.max_message_bytes);
  if (!limit_bytes) {
    return absl::OutOfRangeError(
        absl::StrCat("no memory limit is large enough for ", concurrency,
                     " such calls at once"));
  }
  memory.limit_bytes = *limit_bytes;
  memory.shares = ShareMemory({.max_message_bytes = memory.max_message_bytes},
                              memory.limit_bytes);
  return memory;
}

}  // namespace attnd

#include "core/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/checked_math.h"

namespace attnd {

void Workspace::Free::operator()(std::byte* block) const { std::free(block); }

absl::StatusOr<Workspace> Workspace::Reserve(int64_t size_bytes) {
  Workspace workspace;
  // aligned_alloc wants a multiple of the alignment, and answers 0 bytes as it
  // likes; one line is always there, so that data() is never null.
  if (size_bytes <= std::numeric_limits<int64_t>::max() - kAlignment) {
    const int64_t rounded =
        RoundUp(std::max<int64_t>(size_bytes, 1), kAlignment);
    workspace.block_.reset(static_cast<std::byte*>(
        std::aligned_alloc(kAlignment, static_cast<size_t>(rounded))));
  }
  if (workspace.block_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("workspace: no memory for ", size_bytes, " bytes"));
  }
  workspace.size_bytes_ = size_bytes;
  return workspace;
}

}  // namespace attnd

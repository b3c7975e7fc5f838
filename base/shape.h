// The shapes of tensors, as lists of extents. Standard library alone: the
// client installs this header.
#ifndef ATTND_BASE_SHAPE_H_
#define ATTND_BASE_SHAPE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/types.h"

namespace attnd {

// A dense row-major tensor without its elements.
struct TensorSpec {
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape;
};

// Returns the shape of an attention call's output: the query's shape with the
// value's last axis. Empty if either shape is.
inline std::vector<int64_t> OutputShape(
    const std::vector<int64_t>& query_shape,
    const std::vector<int64_t>& value_shape) {
  if (query_shape.empty() || value_shape.empty()) return {};
  std::vector<int64_t> shape = query_shape;
  shape.back() = value_shape.back();
  return shape;
}

// Returns the shape of lse: [batch, heads, seq] in every layout, without the
// axes that the query lacks.
inline std::vector<int64_t> LseShape(const std::vector<int64_t>& query_shape,
                                     Layout layout = Layout::kBhsd) {
  if (query_shape.empty()) return {};
  std::vector<int64_t> shape = {query_shape.begin(), query_shape.end() - 1};
  if (layout == Layout::kBshd && shape.size() >= 2) {
    std::swap(shape[shape.size() - 2], shape.back());
  }
  return shape;
}

// Returns the product of the extents, or nothing if one is negative or the
// product does not fit an int64.
inline std::optional<int64_t> ElementCount(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  bool empty = false;
  bool overflow = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;
      continue;
    }
    overflow |= __builtin_mul_overflow(count, extent, &count);
  }
  if (empty) return 0;
  if (overflow) return std::nullopt;
  return count;
}

}  // namespace attnd

#endif  // ATTND_BASE_SHAPE_H_

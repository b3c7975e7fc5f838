// Functions on the shapes of tensors. A shape is a list of extents, one for
// each axis. This header uses only the standard library, because it is
// installed with the client library.
#ifndef ATTND_BASE_SHAPE_H_
#define ATTND_BASE_SHAPE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/types.h"

namespace attnd {

// The type and the shape of a dense row-major tensor.
struct TensorSpec {
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape;
};

// Returns the shape of the output of an attention call. It is the shape of the
// query, with the last extent (head_dim) replaced by that of the value
// (v_head_dim). Returns an empty shape if either argument is empty.
inline std::vector<int64_t> OutputShape(
    const std::vector<int64_t>& query_shape,
    const std::vector<int64_t>& value_shape) {
  if (query_shape.empty() || value_shape.empty()) return {};
  std::vector<int64_t> shape = query_shape;
  shape.back() = value_shape.back();
  return shape;
}

// Returns the shape of lse for a query of shape `query_shape` and layout
// `layout`. It is [batch, heads, seq] in every layout, without the axes that
// the query lacks. Returns an empty shape if `query_shape` is empty.
inline std::vector<int64_t> LseShape(const std::vector<int64_t>& query_shape,
                                     Layout layout = Layout::kBhsd) {
  if (query_shape.empty()) return {};
  std::vector<int64_t> shape = {query_shape.begin(), query_shape.end() - 1};
  if (layout == Layout::kBshd && shape.size() >= 2) {
    std::swap(shape[shape.size() - 2], shape.back());
  }
  return shape;
}

// Returns the number of elements, which is the product of the extents. Returns
// nothing if an extent is negative or the product does not fit an int64.
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

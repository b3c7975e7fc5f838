#include "client/types.h"

#include <utility>

namespace attnd::client {

std::vector<int64_t> OutputShape(const std::vector<int64_t>& query_shape,
                                 const std::vector<int64_t>& value_shape) {
  if (query_shape.empty() || value_shape.empty()) return {};
  std::vector<int64_t> shape = query_shape;
  shape.back() = value_shape.back();
  return shape;
}

std::vector<int64_t> LseShape(const std::vector<int64_t>& query_shape,
                              Layout layout) {
  if (query_shape.empty()) return {};
  std::vector<int64_t> shape = {query_shape.begin(), query_shape.end() - 1};
  if (layout == Layout::kBshd && shape.size() >= 2) {
    std::swap(shape[shape.size() - 2], shape.back());
  }
  return shape;
}

std::optional<int64_t> ElementCount(const std::vector<int64_t>& shape) {
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

}  // namespace attnd::client

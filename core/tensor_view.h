// A view of a tensor in memory. Does not own the elements.
#ifndef ATTND_CORE_TENSOR_VIEW_H_
#define ATTND_CORE_TENSOR_VIEW_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace attnd {

// The axes are [batch, heads, seq, dim] whatever their order in memory. A
// tensor of lower rank has leading axes of extent 1. An axis that is broadcast
// has stride 0. Strides count elements, not bytes. T is std::byte if the type
// of the elements is known only at run time; then use RowBytes instead of Row.
template <typename T>
struct TensorView {
  T* data = nullptr;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  // Returns the index, counted from `data`, of the first element of row (batch,
  // head, seq).
  int64_t Offset(int64_t batch, int64_t head, int64_t seq) const {
    return batch * strides[0] + head * strides[1] + seq * strides[2];
  }

  // Returns the start of row (batch, head, seq), which has shape[3] elements.
  T* Row(int64_t batch, int64_t head, int64_t seq) const {
    return data + Offset(batch, head, seq);
  }

  // Returns the start of row (batch, head, seq) if each element has
  // `element_bytes` bytes.
  T* RowBytes(int64_t element_bytes, int64_t batch, int64_t head,
              int64_t seq) const requires(sizeof(T) == 1) {
    return data + Offset(batch, head, seq) * element_bytes;
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_TENSOR_VIEW_H_

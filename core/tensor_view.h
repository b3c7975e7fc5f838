// A non-owning view of a tensor in memory. Knows shape and strides, nothing of
// who owns the bytes or what they mean.
#ifndef ATTND_CORE_TENSOR_VIEW_H_
#define ATTND_CORE_TENSOR_VIEW_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace attnd {

// Four axes, [batch, heads, seq, dim] whatever their order in memory. A tensor
// of lower rank has leading axes of extent 1; an axis that is broadcast has
// stride 0. Strides count elements, not bytes. Where the type of the elements
// is known at run time only, T is std::byte: then Row() is for RowBytes().
template <typename T>
struct TensorView {
  T* data = nullptr;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  // Elements from `data` to the first one at (batch, head, seq).
  int64_t Offset(int64_t batch, int64_t head, int64_t seq) const {
    return batch * strides[0] + head * strides[1] + seq * strides[2];
  }

  // The `dim` elements at (batch, head, seq).
  T* Row(int64_t batch, int64_t head, int64_t seq) const {
    return data + Offset(batch, head, seq);
  }

  // The same of elements of `element_bytes` each.
  T* RowBytes(int64_t element_bytes, int64_t batch, int64_t head,
              int64_t seq) const requires(sizeof(T) == 1) {
    return data + Offset(batch, head, seq) * element_bytes;
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_TENSOR_VIEW_H_

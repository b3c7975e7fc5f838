// A non-owning view of a tensor in memory. Knows shape and strides, nothing of
// who owns the bytes or what they mean.
#ifndef ATTND_CORE_TENSOR_VIEW_H_
#define ATTND_CORE_TENSOR_VIEW_H_

#include <array>
#include <cstdint>

namespace attnd {

// Four axes, [batch, heads, seq, dim] whatever their order in memory. A tensor
// of lower rank has leading axes of extent 1. Strides count elements, not
// bytes; the stride of `dim` is always 1.
template <typename T>
struct TensorView {
  T* data = nullptr;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  // The `dim` contiguous elements at (batch, head, seq).
  T* Row(int64_t batch, int64_t head, int64_t seq) const {
    return data + batch * strides[0] + head * strides[1] + seq * strides[2];
  }

  // A view of row-major memory without gaps.
  static TensorView Dense(T* data, const std::array<int64_t, 4>& shape) {
    return {data,
            shape,
            {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}};
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_TENSOR_VIEW_H_

// A dense array whose element type is only known at run time.
#ifndef ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_
#define ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/attention_params.h"

namespace attnd::testing {

// Returns the number of `type` that is nearest to `value`, with ties to even.
float RoundTo(DataType type, float value);

// Compares bits, so a NaN equals itself.
bool SameBits(std::span<const float> a, std::span<const float> b);

class TypedArray {
 public:
  TypedArray() = default;
  TypedArray(DataType type, int64_t bytes)
      : type_(type), bytes_(static_cast<size_t>(bytes)) {}

  DataType type() const { return type_; }
  int64_t size() const {
    return static_cast<int64_t>(bytes_.size()) / SizeOf(type_);
  }
  const std::byte* data() const { return bytes_.data(); }
  std::byte* data() { return bytes_.data(); }

  // Rounds `value` to the type of the array.
  void Set(int64_t index, float value);
  void Fill(float value);
  float operator[](int64_t index) const;

  // Give access to the elements in place. The type must be F32.
  std::span<float> floats();
  std::span<const float> floats() const;

  // Compares bits.
  friend bool operator==(const TypedArray&, const TypedArray&) = default;

 private:
  DataType type_ = DataType::kF32;
  std::vector<std::byte> bytes_;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_

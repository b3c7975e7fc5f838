// A dense array whose element type is known at run time only.
#ifndef ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_
#define ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/attention_params.h"

namespace attnd::testing {

// `value` as the nearest number of `type`, ties to even.
float RoundTo(DataType type, float value);

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

  // Rounds.
  void Set(int64_t index, float value);
  void Fill(float value);
  float operator[](int64_t index) const;

  // In place; F32 only.
  std::span<float> floats();
  std::span<const float> floats() const;

  // The same bits, so that a NaN equals itself.
  friend bool operator==(const TypedArray&, const TypedArray&) = default;

 private:
  DataType type_ = DataType::kF32;
  std::vector<std::byte> bytes_;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_TYPED_ARRAY_H_

// The enums of attention.proto, for code that does not use protobuf, and the
// names of their values. The client and the server use them. This header uses
// only the standard library, because it is installed with the client library.
//
// The values have the same numbers as in attnd/v1/attention.proto, so a cast
// converts between the two. The names are those of attention.proto without the
// prefix of the enum. For example, kTopLeft is CAUSAL_TOP_LEFT there, TOP_LEFT
// in kNamedValues, and top-left in attnctl.
#ifndef ATTND_BASE_TYPES_H_
#define ATTND_BASE_TYPES_H_

#include <array>
#include <cstdint>

namespace attnd {

// The type of a tensor's elements.
enum class DataType {
  kF32 = 1,
  kF16 = 2,   // IEEE 754 binary16
  kBF16 = 3,  // bfloat16: the upper half of an f32
  kBool = 4,  // one byte: 0 is false, anything else is true; masks only
};

// Returns the bytes of one element.
constexpr int64_t SizeOf(DataType type) {
  return type == DataType::kF32 ? 4 : type == DataType::kBool ? 1 : 2;
}

// The order of a tensor's axes in memory.
enum class Layout {
  kBhsd = 1,  // [batch, heads, seq, dim]
  kBshd = 2,  // [batch, seq, heads, dim]
};

// Which keys a query row may see because of its position p(i). Except with
// kNone, query row i does not see key j if j > p(i).
enum class Causal {
  kNone = 0,
  kTopLeft = 1,      // p(i) = i
  kBottomRight = 2,  // p(i) = i + key length - query length of the batch entry
};

// The arithmetic of the two matrix products. Sums are always f32.
enum class Precision {
  kAuto = 1,  // the fastest within the documented error of the input type
  kF32 = 2,
  kBF16 = 3,  // rounds inputs and weights to bf16
};

// How the tensors of a call travel between the client and the server.
enum class Transport {
  kInline = 1,        // in one message each way
  kStream = 2,        // in chunks
  kSharedMemory = 3,  // not at all: both ends have mapped the same memory
};

// What a memory estimate finds out. The numbers are those of the fields of
// MemoryEstimateRequest.goal.
enum class EstimateGoal {
  kEstimate = 15,  // how much memory a problem takes
  kMaxSeqLen = 16,
  kMaxBatch = 17,
  kMaxConcurrency = 18,
};

// A value of an enum and its name.
template <typename Enum>
struct NamedValue {
  Enum value;
  const char* name;
};

// All values of an enum with their names, in the order of their numbers. For
// enums of other headers the list is empty.
template <typename Enum>
inline constexpr std::array<NamedValue<Enum>, 0> kNamedValues{};
template <>
inline constexpr auto kNamedValues<DataType> =
    std::to_array<NamedValue<DataType>>({{DataType::kF32, "F32"},
                                         {DataType::kF16, "F16"},
                                         {DataType::kBF16, "BF16"},
                                         {DataType::kBool, "BOOL"}});
template <>
inline constexpr auto kNamedValues<Layout> = std::to_array<NamedValue<Layout>>(
    {{Layout::kBhsd, "BHSD"}, {Layout::kBshd, "BSHD"}});
template <>
inline constexpr auto kNamedValues<Causal> =
    std::to_array<NamedValue<Causal>>({{Causal::kNone, "NONE"},
                                       {Causal::kTopLeft, "TOP_LEFT"},
                                       {Causal::kBottomRight, "BOTTOM_RIGHT"}});
template <>
inline constexpr auto kNamedValues<Precision> =
    std::to_array<NamedValue<Precision>>({{Precision::kAuto, "AUTO"},
                                          {Precision::kF32, "F32"},
                                          {Precision::kBF16, "BF16"}});
template <>
inline constexpr auto kNamedValues<Transport> =
    std::to_array<NamedValue<Transport>>({{Transport::kInline, "INLINE"},
                                          {Transport::kStream, "STREAM"},
                                          {Transport::kSharedMemory,
                                           "SHARED_MEMORY"}});

// Returns the name of `value`, or "?" if the enum has no such value.
template <typename Enum>
constexpr const char* NameOf(Enum value) requires(!kNamedValues<Enum>.empty()) {
  for (const auto& [known, name] : kNamedValues<Enum>) {
    if (known == value) return name;
  }
  return "?";
}

}  // namespace attnd

#endif  // ATTND_BASE_TYPES_H_

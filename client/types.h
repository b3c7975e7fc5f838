// The arguments and results of calls, as plain values. Includes neither gRPC
// nor protobuf, so that programs which include it compile quickly. The
// contract, attnd/v1/attention.proto, has every default and every limit.
#ifndef ATTND_CLIENT_TYPES_H_
#define ATTND_CLIENT_TYPES_H_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/shape.h"
#include "base/types.h"

namespace attnd::client {

// The server uses these, too.
using attnd::Causal;
using attnd::DataType;
using attnd::ElementCount;
using attnd::Layout;
using attnd::LseShape;
using attnd::OutputShape;
using attnd::Precision;
using attnd::SizeOf;
using attnd::Transport;

template <typename Range>
concept ContiguousRange =
    std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range>;

// A range whose elements are of one of these C++ types.
template <typename Range, typename... Elements>
concept RangeOf = ContiguousRange<Range> &&
    (std::same_as<std::ranges::range_value_t<Range>, Elements> || ...);

// The place of elements in a region of memory that the server shares.
struct SharedPlace {
  std::string handle;
  int64_t offset_bytes = 0;

  bool operator==(const SharedPlace&) const = default;
};

// Elements that a call writes: F32, F16 or BF16. Does not own them. A range of
// float is F32. C++20 has no 16-bit floats, so the caller names their type:
//   std::vector<uint16_t> halves = ...;  // or _Float16, Eigen::half, ...
//   Elements elements(DataType::kF16, halves);
class Elements {
 public:
  Elements() = default;
  template <RangeOf<float> Range>
  Elements(Range&& range)  // NOLINT(*-explicit-constructor)
      : Elements(DataType::kF32, range) {}
  // Takes any range whose bytes are elements of `type`.
  template <ContiguousRange Range>
  Elements(DataType type, Range&& range)
      : type_(type),
        bytes_(std::as_writable_bytes(
            std::span(std::ranges::data(range), std::ranges::size(range)))) {}
  // For elements in memory that a server shares. SharedRegion makes these.
  Elements(DataType type, std::span<std::byte> bytes, SharedPlace place)
      : type_(type), bytes_(bytes), place_(std::move(place)) {}

  DataType type() const { return type_; }
  std::span<std::byte> bytes() const { return bytes_; }
  // Returns the elements as numbers. Only for F32.
  std::span<float> floats() const {
    return {reinterpret_cast<float*>(bytes_.data()),
            bytes_.size() / sizeof(float)};
  }
  // If this is set, a call sends the place instead of the elements.
  const std::optional<SharedPlace>& place() const { return place_; }

 private:
  DataType type_ = DataType::kF32;
  std::span<std::byte> bytes_;
  std::optional<SharedPlace> place_;
};

// Elements that a call reads: F32, F16, BF16 or BOOL. A range of bool or
// uint8_t is BOOL.
class ConstElements {
 public:
  ConstElements() = default;
  template <RangeOf<float> Range>
  ConstElements(const Range& range)  // NOLINT(*-explicit-constructor)
      : ConstElements(DataType::kF32, range) {}
  template <RangeOf<bool, uint8_t> Range>
  ConstElements(const Range& range)  // NOLINT(*-explicit-constructor)
      : ConstElements(DataType::kBool, range) {}
  template <ContiguousRange Range>
  ConstElements(DataType type, const Range& range)
      : type_(type),
        bytes_(std::as_bytes(
            std::span(std::ranges::data(range), std::ranges::size(range)))) {}
  ConstElements(const Elements& elements)  // NOLINT(*-explicit-constructor)
      : type_(elements.type()),
        bytes_(elements.bytes()),
        place_(elements.place()) {}

  // Returns the same elements, kept alive by `owner`. A call sends them without
  // a copy. It copies elements that have no owner, because gRPC may still read
  // them after a call that was cancelled has returned.
  //   auto q = std::make_shared<std::vector<float>>(...);
  //   ConstElements elements = ConstElements(*q).OwnedBy(q);
  ConstElements OwnedBy(std::shared_ptr<const void> owner) const {
    ConstElements owned = *this;
    owned.owner_ = std::move(owner);
    return owned;
  }

  DataType type() const { return type_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  const std::optional<SharedPlace>& place() const { return place_; }
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  DataType type_ = DataType::kF32;
  std::span<const std::byte> bytes_;
  std::optional<SharedPlace> place_;
  std::shared_ptr<const void> owner_;
};

// A dense row-major tensor that a call reads. Query, key, value and tensors of
// their shapes have rank 4, 3 or 2: [batch, heads, seq, dim], without batch, or
// without batch and heads.
struct ConstTensor {
  ConstElements data;  // the product of `shape` is their number
  std::vector<int64_t> shape;
};

// All three have the same rank. Each is F32, F16 or BF16.
struct AttentionInputs {
  ConstTensor query;  // [batch, q_heads, q_len, head_dim]
  ConstTensor key;    // [batch, kv_heads, kv_len, head_dim]
  ConstTensor value;  // [batch, kv_heads, kv_len, v_head_dim]
};

// Memory of the caller that the answer is written to. It has exactly as many
// elements as the answer; OutputShape() and LseShape() say how many. It lies in
// a shared region if, and only if, the query does.
struct AttentionOutputs {
  // [batch, q_heads, q_len, v_head_dim], in the type that the caller wants.
  Elements output;
  // [batch, q_heads, q_len], F32. The call returns lse if this is set.
  std::optional<Elements> lse = {};
};

// The inputs and answers of an attention call, and the gradient of its output.
// All are F32.
struct BackwardInputs {
  ConstTensor query;
  ConstTensor key;
  ConstTensor value;
  ConstTensor output;       // the answer of Attention
  ConstTensor lse;          // the answer of Attention
  ConstTensor grad_output;  // of the shape of output
};

// Memory for the gradients, each of the size of its input.
struct BackwardOutputs {
  std::span<float> grad_query;
  std::span<float> grad_key;
  std::span<float> grad_value;
};

// Everything that shapes the scores. The members are listed and described in
// base/attention_options.def: AttentionOptions{.causal = Causal::kTopLeft}.
struct AttentionOptions {
  using Tensor = ConstTensor;

#define ATTND_OPTION(type, name, initial, ...) type name = initial;
#include "base/attention_options.def"
};

// What the server ran, and the time and memory that it took.
struct ExecutionStats {
  std::string isa;
  std::string kernel;
  int64_t tile_q = 0;
  int64_t tile_kv = 0;
  int64_t threads = 0;
  absl::Duration queue_time;
  absl::Duration compute_time;
  int64_t flops = 0;
  int64_t workspace_bytes = 0;
};

// What an attention call answers, except the elements.
struct AttentionReply {
  std::vector<int64_t> output_shape;
  std::vector<int64_t> lse_shape;  // empty unless the call returns lse
  ExecutionStats stats;
};

// The problem to time. 0 means the server's default.
struct BenchmarkOptions {
  int64_t num_vectors = 0;  // q_len = kv_len; required
  int64_t dimensions = 0;   // head_dim
  int64_t num_heads = 0;
  DataType dtype = DataType::kF32;
  int64_t block_size = 0;
  int64_t threads = 0;
  int64_t repetitions = 0;
};

struct BenchmarkProgress {
  std::string phase;    // "prepare", "peak", "naive", "flash" or "verify"
  double fraction = 0;  // of the whole, 0 to 1
};

struct BenchmarkResult {
  std::optional<double> naive_time_ms;  // unset if naive did not fit the memory
  double flash_time_ms = 0;
  std::optional<double> speedup;
  double memory_reduction = 0;  // 0.75 = 75 % less
  int64_t num_queries = 0;
  int64_t dimensions = 0;
  double max_abs_error = 0;
  double max_rel_error = 0;
  double gflops = 0;
  double peak_gflops = 0;
  double peak_ratio = 0;
  int64_t naive_peak_bytes = 0;
  int64_t flash_peak_bytes = 0;
  ExecutionStats stats;
  int64_t repetitions = 0;  // the number of runs behind each median
};

// A problem without its data. 0 means the server's default.
struct MemoryEstimateOptions {
  int64_t seq_len = 0;     // for q_len and kv_len if those are 0
  int64_t dimensions = 0;  // for head_dim if that is 0
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t threads = 0;
  int64_t concurrency = 0;                    // requests that run at once
  DataType dtype = DataType::kF32;            // of query, key and value
  std::optional<DataType> output_dtype = {};  // unset = `dtype`
  // Only the types and shapes of bias and mask count. Their elements are not
  // sent.
  AttentionOptions attention = {};
  bool return_lse = false;
  Transport transport = Transport::kInline;
};

struct MemoryEstimate {
  int64_t naive_bytes = 0;
  int64_t flash_bytes = 0;
  double reduction_ratio = 0;
  int64_t input_bytes = 0;
  int64_t output_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t wire_bytes = 0;
  int64_t peak_per_request_bytes = 0;
  int64_t peak_bytes = 0;
  int64_t required_message_bytes = 0;
  int64_t flops = 0;
  bool fits = false;
  std::string limiting_factor;
};

struct ServerInfo {
  std::string version;
  std::string isa;
  int64_t threads = 0;
  int64_t max_receive_message_bytes = 0;
  int64_t max_send_message_bytes = 0;
  int64_t memory_budget_bytes = 0;
  int64_t max_benchmark_vectors = 0;
  std::vector<std::string> features;
};

// The answers of grpc.health.v1.
enum class Health { kUnknown, kServing, kNotServing };

}  // namespace attnd::client

#endif  // ATTND_CLIENT_TYPES_H_

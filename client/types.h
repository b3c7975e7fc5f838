// What goes into a call and what comes out of it, as plain values. Knows
// neither gRPC nor protobuf, so that programs which include it compile quickly.
// The contract, with every default and refusal, is attnd/v1/attention.proto.
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

// What the server uses as well.
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

// Whether the elements of `Range` tell their type by themselves.
template <typename Range, typename... Elements>
concept RangeOf = ContiguousRange<Range> &&
    (std::same_as<std::ranges::range_value_t<Range>, Elements> || ...);

// Where elements lie for a server that shares their memory.
struct SharedPlace {
  std::string handle;
  int64_t offset_bytes = 0;

  bool operator==(const SharedPlace&) const = default;
};

// Elements that are written to. F32, F16 or BF16. A range of float is F32;
// C++20 has no 16-bit floats, so their type is said:
//   std::vector<uint16_t> halves = ...;  // or _Float16, Eigen::half, ...
//   Elements elements(DataType::kF16, halves);
class Elements {
 public:
  Elements() = default;
  template <RangeOf<float> Range>
  Elements(Range&& range)  // NOLINT(*-explicit-constructor)
      : Elements(DataType::kF32, range) {}
  // Any range of bytes that hold elements of `type` as they lie in memory.
  template <ContiguousRange Range>
  Elements(DataType type, Range&& range)
      : type_(type),
        bytes_(std::as_writable_bytes(
            std::span(std::ranges::data(range), std::ranges::size(range)))) {}
  // In memory that a server shares: SharedRegion makes these.
  Elements(DataType type, std::span<std::byte> bytes, SharedPlace place)
      : type_(type), bytes_(bytes), place_(std::move(place)) {}

  DataType type() const { return type_; }
  std::span<std::byte> bytes() const { return bytes_; }
  // The same as numbers, for F32.
  std::span<float> floats() const {
    return {reinterpret_cast<float*>(bytes_.data()),
            bytes_.size() / sizeof(float)};
  }
  // Set: not the elements travel, but this.
  const std::optional<SharedPlace>& place() const { return place_; }

 private:
  DataType type_ = DataType::kF32;
  std::span<std::byte> bytes_;
  std::optional<SharedPlace> place_;
};

// The same to be read only, and also of BOOL: a range of bool or uint8_t.
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

  // The same elements, kept alive by `owner`. They are sent from where they
  // lie: without an owner a call copies what it sends, for a call that is
  // cancelled may end before gRPC has stopped reading.
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

// A dense row-major tensor that the caller owns. Query, key, value and what has
// their shapes are of rank 4, 3 or 2: [batch, heads, seq, dim], without batch,
// or without batch and heads.
struct ConstTensor {
  ConstElements data;  // as many elements as `shape` says
  std::vector<int64_t> shape;
};

// All three have the same rank; each is F32, F16 or BF16.
struct AttentionInputs {
  ConstTensor query;  // [batch, q_heads, q_len, head_dim]
  ConstTensor key;    // [batch, kv_heads, kv_len, head_dim]
  ConstTensor value;  // [batch, kv_heads, kv_len, v_head_dim]
};

// Where the answer goes: memory of the caller, exactly as many elements as the
// answer has; in a shared region if, and only if, the query is. OutputShape()
// and LseShape() say how many that is.
struct AttentionOutputs {
  Elements
      output;  // [batch, q_heads, q_len, v_head_dim]; its type is asked for
  std::optional<Elements> lse = {};  // [batch, q_heads, q_len], F32;
                                     // set = asked for
};

// What Attention saw and answered, and the gradient of its output. All F32.
struct BackwardInputs {
  ConstTensor query;
  ConstTensor key;
  ConstTensor value;
  ConstTensor output;       // as Attention answered it
  ConstTensor lse;          // likewise
  ConstTensor grad_output;  // the shape of output
};

// Where the gradients go, each as large as what it is the gradient of.
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

// What ran on the server, and what it took.
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

// What an attention call answers beside the elements.
struct AttentionReply {
  std::vector<int64_t> output_shape;
  std::vector<int64_t> lse_shape;  // empty where lse was not asked for
  ExecutionStats stats;
};

// Which problem to time. 0 takes the server's default.
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
  std::optional<double> naive_time_ms;  // unset where naive did not fit
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
  int64_t repetitions = 0;  // how many runs the medians are of
};

// A problem without its data. 0 takes the server's default.
struct MemoryEstimateOptions {
  int64_t seq_len = 0;     // q_len and kv_len where those are 0
  int64_t dimensions = 0;  // head_dim where that is 0
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
  std::optional<DataType> output_dtype = {};  // `dtype` where unset
  // Of bias and mask the type and the shape count; their elements are not sent.
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

// What grpc.health.v1 answers.
enum class Health { kUnknown, kServing, kNotServing };

}  // namespace attnd::client

#endif  // ATTND_CLIENT_TYPES_H_

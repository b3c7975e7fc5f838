// The arguments and the results of calls, as plain values. Their members have
// the names of the fields in the contract, attnd/v1/attention.proto. See there
// for every unit, default and limit. This header includes neither gRPC nor
// protobuf, so that programs that include it compile quickly.
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

// Types of base/ that the client library has in common with the server.
using attnd::Causal;
using attnd::DataType;
using attnd::ElementCount;
using attnd::EstimateGoal;
using attnd::Layout;
using attnd::LseShape;
using attnd::OutputShape;
using attnd::Precision;
using attnd::SizeOf;
using attnd::Transport;

template <typename Range>
concept ContiguousRange =
    std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range>;

// A contiguous range whose elements have one of the C++ types `Types`.
template <typename Range, typename... Types>
concept RangeOf = ContiguousRange<Range> &&
    (std::same_as<std::ranges::range_value_t<Range>, Types> || ...);

// Where a tensor lies in memory that this process shares with a server.
struct SharedPlace {
  std::string handle;
  int64_t offset_bytes = 0;

  bool operator==(const SharedPlace&) const = default;
};

// Refers to memory of the caller to which a call writes a tensor of F32, F16 or
// BF16. Does not own the memory. A range of float becomes F32. C++20 has no
// 16-bit floats, so pass the type of such a range:
//   std::vector<uint16_t> halves = ...;  // or _Float16, Eigen::half, ...
//   Elements elements(DataType::kF16, halves);
class Elements {
 public:
  Elements() = default;
  template <RangeOf<float> Range>
  Elements(Range&& range)  // NOLINT(*-explicit-constructor)
      : Elements(DataType::kF32, range) {}
  // Refers to any range whose bytes are elements of `type`.
  template <ContiguousRange Range>
  Elements(DataType type, Range&& range)
      : type_(type),
        bytes_(std::as_writable_bytes(
            std::span(std::ranges::data(range), std::ranges::size(range)))) {}
  // Refers to elements in a region that this process shares with a server. Only
  // SharedRegion needs this constructor.
  Elements(DataType type, std::span<std::byte> bytes, SharedPlace place)
      : type_(type), bytes_(bytes), place_(std::move(place)) {}

  DataType type() const { return type_; }
  std::span<std::byte> bytes() const { return bytes_; }
  // Returns the elements as numbers. The type must be F32.
  std::span<float> floats() const {
    return {reinterpret_cast<float*>(bytes_.data()),
            bytes_.size() / sizeof(float)};
  }
  // Returns the place of the elements if they are in memory that is shared with
  // the server. A call then sends this place instead of the elements.
  const std::optional<SharedPlace>& place() const { return place_; }

 private:
  DataType type_ = DataType::kF32;
  std::span<std::byte> bytes_;
  std::optional<SharedPlace> place_;
};

// Refers to the elements of a tensor that a call reads: F32, F16, BF16 or BOOL.
// Does not own them, except through OwnedBy. A range of float becomes F32, and
// a range of bool or uint8_t becomes BOOL. For other ranges, pass the type.
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

  // Returns the same elements with an owner that keeps them alive. A call sends
  // such elements without a copy. It copies elements that have no owner,
  // because gRPC may still read them after a cancelled call has returned.
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

// A dense row-major tensor that a call reads. Query, key and value, outputs and
// gradients have rank 4, 3 or 2, with the axes [batch, heads, seq, dim],
// [heads, seq, dim] or [seq, dim].
struct ConstTensor {
  ConstElements data;  // as many elements as the product of `shape`
  std::vector<int64_t> shape;
};

// The tensors of an attention call. All three have the same rank. Each of them
// can be F32, F16 or BF16.
struct AttentionInputs {
  ConstTensor query;  // [batch, q_heads, q_len, head_dim]
  ConstTensor key;    // [batch, kv_heads, kv_len, head_dim]
  ConstTensor value;  // [batch, kv_heads, kv_len, v_head_dim]
};

// The memory of the caller to which a call writes its results. It must have
// exactly as many elements as the results; OutputShape() and LseShape() return
// their shapes. If the query is in a SharedRegion, the memory must be in one,
// too, and otherwise it must not.
struct AttentionOutputs {
  // [batch, q_heads, q_len, v_head_dim]. The answer has the type of these
  // elements.
  Elements output;
  // [batch, q_heads, q_len], F32. Set it to get lse, the logarithm of the sum
  // of the exponentials of the scores of each row.
  std::optional<Elements> lse = {};
};

// What AttentionBackward needs: the inputs and results of an earlier Attention
// call, and the gradient of a loss with respect to its output. All are F32.
struct BackwardInputs {
  ConstTensor query;
  ConstTensor key;
  ConstTensor value;
  ConstTensor output;       // as Attention returned it
  ConstTensor lse;          // as Attention returned it
  ConstTensor grad_output;  // has the shape of output
};

// The memory of the caller to which AttentionBackward writes the gradients.
// Each has as many elements as the input that it is the gradient of.
struct BackwardOutputs {
  std::span<float> grad_query;
  std::span<float> grad_key;
  std::span<float> grad_value;
};

// The options that shape the scores of an attention call. Its members are the
// options that base/attention_options.def lists and describes. For example,
// write AttentionOptions{.causal = Causal::kTopLeft}.
struct AttentionOptions {
  using Tensor = ConstTensor;

#define ATTND_OPTION(type, name, initial, ...) type name = initial;
#include "base/attention_options.def"
};

// How the server computed a call (instruction set, kernel, tile sizes,
// threads), and how much time and memory that took.
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

// The answer to an attention call, except for the elements of its tensors,
// which are in AttentionOutputs.
struct AttentionReply {
  std::vector<int64_t> output_shape;
  std::vector<int64_t> lse_shape;  // empty if lse was not requested
  ExecutionStats stats;
};

// The problem for a benchmark. A member of 0 means the server's default.
struct BenchmarkOptions {
  int64_t num_vectors = 0;  // q_len = kv_len; required
  int64_t dimensions = 0;   // head_dim
  int64_t num_heads = 0;
  DataType dtype = DataType::kF32;
  int64_t block_size = 0;
  int64_t threads = 0;
  int64_t repetitions = 0;
};

// A progress report of a benchmark that is running.
struct BenchmarkProgress {
  std::string phase;    // "prepare", "peak", "naive", "flash" or "verify"
  double fraction = 0;  // how much of the benchmark is done, from 0 to 1
  // About how many more seconds it takes. Unset until one repetition has run.
  std::optional<double> seconds_left;
};

// The result of Benchmark, which compares flash attention with naive attention
// (which stores all scores). Times are medians.
struct BenchmarkResult {
  // Unset if naive attention did not fit the memory budget.
  std::optional<double> naive_time_ms;
  double flash_time_ms = 0;
  std::optional<double> speedup;
  double memory_reduction = 0;  // 0.75 means 75 % less than naive attention
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

// The problem for a memory estimate, without its data. A size of 0 means the
// server's default.
struct MemoryEstimateOptions {
  int64_t seq_len = 0;     // the default of q_len and kv_len
  int64_t dimensions = 0;  // the default of head_dim
  int64_t batch = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t threads = 0;
  int64_t concurrency = 0;          // how many such requests run at once
  DataType dtype = DataType::kF32;  // the type of query, key and value
  std::optional<DataType> output_dtype = {};  // if unset, the same as `dtype`
  // Only the types and the shapes of bias and mask matter. Their elements are
  // not sent, and may be missing.
  AttentionOptions attention = {};
  bool return_lse = false;
  Transport transport = Transport::kInline;
  // What to find: how much memory this problem takes, or the largest problem
  // that fits into `budget_bytes`. 0 bytes stand for the memory budget of the
  // server.
  EstimateGoal goal = EstimateGoal::kEstimate;
  int64_t budget_bytes = 0;
};

// The memory that a problem takes. If MemoryEstimateOptions::goal asked for the
// largest problem, these are the numbers of the largest that fits, or those of
// size 1 if not even that fits.
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
  // The largest sequence length, batch or concurrency that fits, whichever the
  // goal asked for. 0 if not even 1 fits, or if the goal did not ask.
  int64_t largest = 0;
};

// What the calls of one method have done since the server started.
struct MethodLoad {
  std::string method;    // for example "Attention"
  int64_t finished = 0;  // calls that have ended
  int64_t failed = 0;    // those of them that ended with an error
  absl::Duration total_time;
  absl::Duration queue_time;
  absl::Duration compute_time;
  int64_t flops = 0;
};

// What a server does at this moment.
struct ServerLoad {
  absl::Duration uptime;
  int64_t in_flight = 0;
  int64_t max_in_flight = 0;
  int64_t reserved_bytes = 0;
  int64_t connections = 0;
  int64_t max_connections = 0;
  int64_t busy_threads = 0;
  std::vector<MethodLoad> methods;
};

// The version, the limits, the features and the load of a server.
struct ServerInfo {
  std::string version;
  std::string isa;
  int64_t threads = 0;
  int64_t max_receive_message_bytes = 0;
  int64_t max_send_message_bytes = 0;
  int64_t memory_budget_bytes = 0;
  int64_t max_benchmark_vectors = 0;
  std::vector<std::string> features;
  ServerLoad load;
};

// What the health service of a server (grpc.health.v1) reports.
enum class Health { kUnknown, kServing, kNotServing };

}  // namespace attnd::client

#endif  // ATTND_CLIENT_TYPES_H_

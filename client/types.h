// What goes into a call and what comes out of it, as plain values. Knows
// neither gRPC nor protobuf, so that programs which include it compile quickly.
// The contract, with every default and refusal, is attnd/v1/attention.proto.
#ifndef ATTND_CLIENT_TYPES_H_
#define ATTND_CLIENT_TYPES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace attnd::client {

// A dense row-major tensor that the caller owns, of rank 4, 3 or 2:
// [batch, heads, seq, dim], without batch, or without batch and heads.
struct ConstTensor {
  std::span<const float> data;  // as many elements as `shape` says
  std::vector<int64_t> shape;
};

// All three have the same rank.
struct AttentionInputs {
  ConstTensor query;  // [batch, q_heads, q_len, head_dim]
  ConstTensor key;    // [batch, kv_heads, kv_len, head_dim]
  ConstTensor value;  // [batch, kv_heads, kv_len, v_head_dim]
};

// Where the answer goes: memory of the caller, exactly as many elements as the
// answer has. OutputShape() and LseShape() say how many that is.
struct AttentionOutputs {
  std::span<float> output;  // [batch, q_heads, q_len, v_head_dim]
  std::optional<std::span<float>> lse = {};  // [batch, q_heads, q_len];
                                             // set = asked for
};

// The query's shape with the value's last axis; empty where either is.
std::vector<int64_t> OutputShape(const std::vector<int64_t>& query_shape,
                                 const std::vector<int64_t>& value_shape);

// The query's shape without its last axis.
std::vector<int64_t> LseShape(const std::vector<int64_t>& query_shape);

// The product of the axes; nothing where one is negative or it overflows.
std::optional<int64_t> ElementCount(const std::vector<int64_t>& shape);

// Which keys a query row may see: those with j <= p(i).
enum class Causal {
  kNone,
  kTopLeft,      // p(i) = i
  kBottomRight,  // p(i) = i + kv_len - q_len
};

// How scores are made. Unset or 0 takes the server's default.
struct AttentionOptions {
  std::optional<float> scale = {};        // 1 / sqrt(head_dim)
  std::optional<float> temperature = {};  // 1
  int64_t block_size = 0;                 // keys in a tile; 0 = automatic
  Causal causal = Causal::kNone;
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
  int64_t concurrency = 0;  // requests that run at once
  AttentionOptions attention = {};
  bool return_lse = false;
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

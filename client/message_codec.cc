#include "client/message_codec.h"

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/error_details.h"

namespace attnd::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

v1::Causal EncodeCausal(Causal causal) {
  switch (causal) {
    case Causal::kNone:
      return v1::CAUSAL_UNSPECIFIED;
    case Causal::kTopLeft:
      return v1::CAUSAL_TOP_LEFT;
    case Causal::kBottomRight:
      return v1::CAUSAL_BOTTOM_RIGHT;
  }
  return v1::CAUSAL_UNSPECIFIED;
}

}  // namespace

void EncodeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  proto->set_dtype(v1::DATA_TYPE_F32);
  proto->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  std::string* data = proto->mutable_data();
  if (tensor.data.empty()) return;
  data->assign(reinterpret_cast<const char*>(tensor.data.data()),
               tensor.data.size_bytes());
}

void EncodeOptions(const AttentionOptions& options, bool return_lse,
                   v1::AttentionOptions* proto) {
  if (options.scale) proto->set_scale(*options.scale);
  if (options.temperature) proto->set_temperature(*options.temperature);
  proto->set_block_size(options.block_size);
  proto->set_causal(EncodeCausal(options.causal));
  proto->set_return_lse(return_lse);
}

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options) {
  v1::BenchmarkRequest proto;
  proto.set_num_vectors(options.num_vectors);
  proto.set_dimensions(options.dimensions);
  proto.set_num_heads(options.num_heads);
  proto.set_block_size(options.block_size);
  proto.set_threads(options.threads);
  proto.set_repetitions(options.repetitions);
  return proto;
}

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options) {
  v1::MemoryEstimateRequest proto;
  proto.set_seq_len(options.seq_len);
  proto.set_dimensions(options.dimensions);
  proto.set_batch(options.batch);
  proto.set_num_q_heads(options.num_q_heads);
  proto.set_num_kv_heads(options.num_kv_heads);
  proto.set_q_len(options.q_len);
  proto.set_kv_len(options.kv_len);
  proto.set_head_dim(options.head_dim);
  proto.set_v_head_dim(options.v_head_dim);
  proto.set_threads(options.threads);
  proto.set_concurrency(options.concurrency);
  EncodeOptions(options.attention, options.return_lse, proto.mutable_options());
  return proto;
}

absl::Status DecodeTensor(const v1::Tensor& proto, absl::string_view name,
                          std::span<float> target) {
  const std::vector<int64_t> shape(proto.shape().begin(), proto.shape().end());
  const std::string described =
      absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
  const auto count = ElementCount(shape);
  if (proto.dtype() != v1::DATA_TYPE_F32 || !proto.has_data() || !count ||
      static_cast<uint64_t>(*count) != proto.data().size() / sizeof(float) ||
      proto.data().size() % sizeof(float) != 0) {
    return ReasonError(
        absl::StatusCode::kInternal, "BAD_RESPONSE",
        absl::StrCat(name, ": the server answered ", proto.data().size(),
                     " bytes of dtype ", static_cast<int>(proto.dtype()),
                     " for shape ", described));
  }
  if (target.size_bytes() != proto.data().size()) {
    return FieldError(
        name,
        absl::StrCat("a span of ", *count, " floats for an answer of shape ",
                     described),
        absl::StrCat("a span of ", target.size()));
  }
  if (!target.empty()) {
    std::memcpy(target.data(), proto.data().data(), target.size_bytes());
  }
  return absl::OkStatus();
}

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto) {
  BenchmarkResult result;
  if (proto.has_naive_time_ms()) result.naive_time_ms = proto.naive_time_ms();
  if (proto.has_speedup()) result.speedup = proto.speedup();
  result.flash_time_ms = proto.flash_time_ms();
  result.memory_reduction = proto.memory_reduction();
  result.num_queries = proto.num_queries();
  result.dimensions = proto.dimensions();
  result.max_abs_error = proto.max_abs_error();
  result.max_rel_error = proto.max_rel_error();
  result.gflops = proto.gflops();
  result.peak_gflops = proto.peak_gflops();
  result.peak_ratio = proto.peak_ratio();
  result.naive_peak_bytes = proto.naive_peak_bytes();
  result.flash_peak_bytes = proto.flash_peak_bytes();
  result.stats = DecodeStats(proto.stats());
  return result;
}

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto) {
  MemoryEstimate estimate;
  estimate.naive_bytes = proto.naive_bytes();
  estimate.flash_bytes = proto.flash_bytes();
  estimate.reduction_ratio = proto.reduction_ratio();
  estimate.input_bytes = proto.input_bytes();
  estimate.output_bytes = proto.output_bytes();
  estimate.workspace_bytes = proto.workspace_bytes();
  estimate.wire_bytes = proto.wire_bytes();
  estimate.peak_per_request_bytes = proto.peak_per_request_bytes();
  estimate.peak_bytes = proto.peak_bytes();
  estimate.required_message_bytes = proto.required_message_bytes();
  estimate.flops = proto.flops();
  estimate.fits = proto.fits();
  estimate.limiting_factor = proto.limiting_factor();
  return estimate;
}

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& proto) {
  ServerInfo info;
  info.version = proto.version();
  info.isa = proto.isa();
  info.threads = proto.threads();
  info.max_receive_message_bytes = proto.max_receive_message_bytes();
  info.max_send_message_bytes = proto.max_send_message_bytes();
  info.memory_budget_bytes = proto.memory_budget_bytes();
  info.max_benchmark_vectors = proto.max_benchmark_vectors();
  info.features.assign(proto.features().begin(), proto.features().end());
  return info;
}

ExecutionStats DecodeStats(const v1::ExecutionStats& proto) {
  ExecutionStats stats;
  stats.isa = proto.isa();
  stats.kernel = proto.kernel();
  stats.tile_q = proto.tile_q();
  stats.tile_kv = proto.tile_kv();
  stats.threads = proto.threads();
  stats.queue_time = DecodeDuration(proto.queue_time());
  stats.compute_time = DecodeDuration(proto.compute_time());
  stats.flops = proto.flops();
  stats.workspace_bytes = proto.workspace_bytes();
  return stats;
}

}  // namespace attnd::client

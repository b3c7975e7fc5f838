#include "tests/client/fake_handler.h"

#include <cstdint>
#include <numeric>

#include "client/types.h"

namespace attnd::client {
namespace {

void FillTensor(const std::vector<int64_t>& shape, float step,
                v1::Tensor* tensor) {
  tensor->set_dtype(v1::DATA_TYPE_F32);
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  std::vector<float> values(
      static_cast<size_t>(ElementCount(shape).value_or(0)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = step * static_cast<float>(i);
  }
  tensor->set_data(values.data(), values.size() * sizeof(float));
}

void FillHalves(v1::DataType type, const std::vector<int64_t>& shape,
                v1::Tensor* tensor) {
  tensor->set_dtype(type);
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  std::vector<uint16_t> values(
      static_cast<size_t>(ElementCount(shape).value_or(0)));
  std::iota(values.begin(), values.end(), 0);
  tensor->set_data(values.data(), values.size() * sizeof(uint16_t));
}

std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

}  // namespace

WireReply FakeHandler::OnAttention(const FakeCall& call,
                                   v1::AttentionResponse* response) {
  const std::vector<int64_t> query = ShapeOf(call.tensors.front());
  const std::vector<int64_t> value = ShapeOf(call.tensors.back());
  const v1::DataType type = call.options.output_dtype();
  if (type == v1::DATA_TYPE_F16 || type == v1::DATA_TYPE_BF16) {
    FillHalves(type, OutputShape(query, value), response->mutable_output());
  } else {
    FillTensor(OutputShape(query, value), 1, response->mutable_output());
  }
  if (call.options.return_lse()) {
    const auto layout = call.options.layout() == v1::LAYOUT_BSHD
                            ? Layout::kBshd
                            : Layout::kBhsd;
    FillTensor(LseShape(query, layout), -1, response->mutable_lse());
  }
  v1::ExecutionStats* stats = response->mutable_stats();
  stats->set_isa("scalar");
  stats->set_threads(3);
  stats->mutable_queue_time()->set_nanos(500);
  stats->mutable_compute_time()->set_seconds(2);
  stats->mutable_compute_time()->set_nanos(250'000'000);
  stats->set_flops(int64_t{1} << 40);
  const std::lock_guard lock(mutex_);
  calls_.push_back(call);
  return {};
}

WireReply FakeHandler::OnBackward(const FakeCall& call,
                                  v1::AttentionBackwardResponse* response) {
  FillTensor(ShapeOf(call.tensors[0]), 1, response->mutable_grad_query());
  FillTensor(ShapeOf(call.tensors[1]), 1, response->mutable_grad_key());
  FillTensor(ShapeOf(call.tensors[2]), 1, response->mutable_grad_value());
  response->mutable_stats()->set_isa("scalar");
  const std::lock_guard lock(mutex_);
  calls_.push_back(call);
  return {};
}

WireReply FakeHandler::OnBenchmark(
    const v1::BenchmarkRequest& request,
    const std::function<bool(const v1::BenchmarkResponse&)>& write) {
  double fraction = 0;
  for (const char* phase : {"prepare", "peak", "naive", "flash", "verify"}) {
    v1::BenchmarkResponse event;
    event.mutable_progress()->set_phase(phase);
    event.mutable_progress()->set_fraction(fraction += 0.2);
    if (!write(event)) return {.code = 1};
  }
  v1::BenchmarkResponse event;
  v1::BenchmarkResult* result = event.mutable_result();
  result->set_num_queries(request.num_vectors());
  result->set_dimensions(request.dimensions());
  result->set_naive_time_ms(8);
  result->set_flash_time_ms(2);
  result->set_speedup(4);
  result->set_memory_reduction(0.75);
  result->set_gflops(50);
  result->set_peak_ratio(0.5);
  result->set_naive_peak_bytes(4096);
  result->set_flash_peak_bytes(1024);
  result->mutable_stats()->set_isa("scalar");
  result->mutable_stats()->set_threads(1);
  write(event);
  return {};
}

WireReply FakeHandler::OnMemoryEstimate(
    const v1::MemoryEstimateRequest& request,
    v1::MemoryEstimateResponse* response) {
  response->set_input_bytes(request.seq_len());
  response->set_peak_bytes(request.concurrency());
  response->set_fits(true);
  response->set_limiting_factor("message_size");
  return {};
}

WireReply FakeHandler::OnServerInfo(v1::GetServerInfoResponse* response) {
  response->set_version("9.8.7");
  response->set_threads(5);
  response->set_memory_budget_bytes(int64_t{3} << 30);
  response->set_max_receive_message_bytes(int64_t{1} << 30);
  response->set_max_send_message_bytes(int64_t{1} << 30);
  response->add_features("stream");
  response->add_features("backward");
  return {};
}

std::vector<FakeCall> FakeHandler::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

}  // namespace attnd::client

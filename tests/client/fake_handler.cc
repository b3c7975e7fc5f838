#include "tests/client/fake_handler.h"

#include <cstdint>
#include <numeric>
#include <utility>

#include "client/types.h"

namespace attnd::client {
namespace {

void Describe(v1::DataType type, const std::vector<int64_t>& shape,
              v1::Tensor* tensor) {
  tensor->set_dtype(type);
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
}

std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

void Fill(float step, v1::Tensor* tensor) {
  const auto count =
      static_cast<size_t>(ElementCount(ShapeOf(*tensor)).value_or(0));
  if (tensor->dtype() == v1::DATA_TYPE_F32) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = step * static_cast<float>(i);
    tensor->set_data(values.data(), count * sizeof(float));
  } else {
    std::vector<uint16_t> values(count);
    std::iota(values.begin(), values.end(), 0);
    tensor->set_data(values.data(), count * sizeof(uint16_t));
  }
}

}  // namespace

v1::AttentionResponse FakeHandler::DescribeAnswer(const FakeCall& call) {
  const std::vector<int64_t> query = ShapeOf(call.tensors.front());
  const std::vector<int64_t> value = ShapeOf(call.tensors.back());
  const v1::DataType type = call.options.output_dtype();
  const bool halves = type == v1::DATA_TYPE_F16 || type == v1::DATA_TYPE_BF16;
  v1::AttentionResponse header;
  Describe(halves ? type : v1::DATA_TYPE_F32, OutputShape(query, value),
           header.mutable_output());
  if (call.options.return_lse()) {
    const auto layout = call.options.layout() == v1::LAYOUT_BSHD
                            ? Layout::kBshd
                            : Layout::kBhsd;
    Describe(v1::DATA_TYPE_F32, LseShape(query, layout), header.mutable_lse());
  }
  return header;
}

WireReply FakeHandler::OnChunk(int /*chunks*/) { return {}; }

WireReply FakeHandler::OnAttention(const FakeCall& call,
                                   v1::AttentionResponse* response) {
  *response = DescribeAnswer(call);
  Fill(1, response->mutable_output());
  if (response->has_lse()) Fill(-1, response->mutable_lse());
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
  const std::pair<size_t, v1::Tensor*> gradients[] = {
      {0, response->mutable_grad_query()},
      {1, response->mutable_grad_key()},
      {2, response->mutable_grad_value()}};
  for (const auto& [of, gradient] : gradients) {
    Describe(v1::DATA_TYPE_F32, ShapeOf(call.tensors[of]), gradient);
    Fill(1, gradient);
  }
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
  result->set_repetitions(3);
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

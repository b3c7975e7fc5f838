#include "bench/serving_case.h"

#include <algorithm>
#include <random>
#include <span>
#include <stdexcept>
#include <utility>

namespace attnd::bench {
namespace {

constexpr int64_t kMaxMessageBytes = int64_t{256} << 20;

int64_t Elements(const std::vector<int64_t>& shape) {
  return client::ElementCount(shape).value();
}

std::vector<float> Random(int64_t count, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return normal(rng); });
  return values;
}

void Check(const absl::Status& status, const std::string& what) {
  if (!status.ok()) {
    throw std::runtime_error(what + ": " + std::string(status.message()));
  }
}

}  // namespace

int64_t ServingCase::request_bytes() const {
  return SizeOf(DataType::kF32) *
         (Elements(QueryShape()) + 2 * Elements(KeyShape()));
}

int64_t ServingCase::reply_bytes() const {
  return SizeOf(DataType::kF32) * Elements(QueryShape());
}

std::vector<ServingCase> ServingCases() {
  const auto square = [](std::string name, int64_t heads, int64_t len,
                         int64_t head_dim, int max_clients) {
    return ServingCase{.name = std::move(name),
                       .q_heads = heads,
                       .kv_heads = heads,
                       .q_len = len,
                       .kv_len = len,
                       .head_dim = head_dim,
                       .max_clients = max_clients};
  };
  return {square("smallest", 1, 16, 16, 16),
          square("short", 8, 128, 64, 16),
          square("medium", 8, 1024, 64, 16),
          {.name = "decode",
           .q_heads = 32,
           .kv_heads = 8,
           .q_len = 1,
           .kv_len = 4096,
           .head_dim = 128,
           .max_clients = 4},
          square("payload_1_mib", 64, 64, 64, 16),
          square("payload_4_mib", 256, 64, 64, 16),
          square("payload_16_mib", 1024, 64, 64, 4),
          square("prefill", 8, 4096, 128, 1)};
}

Workload::Workload(const ServingCase& shape, int slots)
    : shape_(shape),
      problem_(AttentionProblem::Create({.shape = shape.QueryShape()},
                                        {.shape = shape.KeyShape()},
                                        {.shape = shape.KeyShape()}, {})
                   .value()) {
  std::mt19937 rng(1);
  query_ = Random(Elements(shape.QueryShape()), rng);
  key_ = Random(Elements(shape.KeyShape()), rng);
  value_ = Random(Elements(shape.KeyShape()), rng);
  for (int i = 0; i < slots; ++i) {
    outputs_.push_back(std::make_unique_for_overwrite<float[]>(query_.size()));
  }
}

client::AttentionOutputs Workload::Outputs(int slot) const {
  return {.output = std::span(outputs_[static_cast<size_t>(slot)].get(),
                              query_.size())};
}

client::AttentionInputs Workload::Inputs() const {
  return {.query = {query_, shape_.QueryShape()},
          .key = {key_, shape_.KeyShape()},
          .value = {value_, shape_.KeyShape()}};
}

void Workload::Call(const client::AttentionClient& client, int slot) {
  const auto reply = client.Attention(Inputs(), Outputs(slot));
  Check(reply.status(), shape_.name);
}

void Workload::Run(AttentionEngine& engine, int slot) {
  const auto stats = engine.Run(
      problem_, {.query = query_.data(),
                 .key = key_.data(),
                 .value = value_.data(),
                 .output = outputs_[static_cast<size_t>(slot)].get()});
  Check(stats.status(), shape_.name);
}

void Workload::CallAsync(const client::AttentionClient& client, int slot,
                         Done done) {
  client.AttentionAsync(Inputs(), Outputs(slot), {}, std::move(done));
}

std::vector<client::AttentionClient> Connect(const std::string& target,
                                             int count) {
  std::vector<client::AttentionClient> clients;
  clients.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    // gRPC lets equal channels share a connection, so they differ in a limit.
    clients.emplace_back(client::ClientOptions{
        .target = target, .max_message_bytes = kMaxMessageBytes + i});
  }
  return clients;
}

Json ServingRecord(const ServingCase& shape, const std::string& name,
                   const std::string& transport, int clients) {
  return {{"name", name},
          {"transport", transport},
          {"batch", shape.batch},
          {"q_heads", shape.q_heads},
          {"kv_heads", shape.kv_heads},
          {"q_len", shape.q_len},
          {"kv_len", shape.kv_len},
          {"head_dim", shape.head_dim},
          {"dtype", "f32"},
          {"clients", clients},
          {"rps", nullptr},
          {"p50_us", nullptr},
          {"p99_us", nullptr},
          {"core_p50_us", nullptr},
          {"overhead_ratio", nullptr},
          {"case", shape.name}};
}

}  // namespace attnd::bench

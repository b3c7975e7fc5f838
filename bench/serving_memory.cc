#include "bench/serving_memory.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "bench/serving_case.h"

namespace attnd::bench {
namespace {

constexpr int64_t kLargestHeads = 4096;  // 16 KiB each, so a tensor has 64 MiB

ServingCase OfHeads(int64_t heads) {
  return {.name = "memory",
          .q_heads = heads,
          .kv_heads = heads,
          .q_len = 64,
          .kv_len = 64,
          .head_dim = 64};
}

// Returns how many heads each of a hundred calls has. One call has
// kLargestHeads.
std::vector<int64_t> HundredCalls() {
  std::vector<int64_t> heads;
  for (const auto& [size, times] :
       std::map<int64_t, size_t>{{1, 40},
                                 {8, 30},
                                 {64, 15},
                                 {256, 9},
                                 {1024, 5},
                                 {kLargestHeads, 1}}) {
    heads.insert(heads.end(), times, size);
  }
  std::shuffle(heads.begin(), heads.end(), std::mt19937(1));
  return heads;
}

int64_t EstimatedPeak(const client::AttentionClient& client,
                      const ServingCase& shape, client::Transport transport) {
  const auto estimate = client.EstimateMemory({.num_q_heads = shape.q_heads,
                                               .num_kv_heads = shape.kv_heads,
                                               .q_len = shape.q_len,
                                               .kv_len = shape.kv_len,
                                               .head_dim = shape.head_dim,
                                               .concurrency = 1,
                                               .transport = transport});
  if (!estimate.ok()) {
    throw std::runtime_error("MemoryEstimate: " +
                             std::string(estimate.status().message()));
  }
  return estimate->peak_bytes;
}

// Returns a record of the largest amount of memory that a call adds to what the
// server held before.
Json MeasurePeak(const ChildProcess& server,
                 const client::AttentionClient& connection,
                 const ServingCase& shape, const std::string& name) {
  const int64_t idle_bytes = server.StatusBytes("VmRSS");
  server.ResetPeak();
  Workload(shape, 1).Call(connection, 0);
  Json peak = ServingRecord(shape, name, "tcp", 1);
  peak["idle_bytes"] = idle_bytes;
  peak["peak_bytes"] = server.StatusBytes("VmHWM") - idle_bytes;
  peak["estimate_bytes"] = EstimatedPeak(
      connection, shape,
      shape.streamed ? client::Transport::kStream : client::Transport::kInline);
  return peak;
}

}  // namespace

Json MeasureStreamPeak(const ChildProcess& server) {
  const client::AttentionClient client =
      Connect(server.addresses().front(), 1, /*streamed=*/true).front();
  Workload(OfHeads(1), 1).Call(client, 0);
  ServingCase largest = OfHeads(kLargestHeads);
  largest.streamed = true;
  return MeasurePeak(server, client, largest, "memory_peak_stream");
}

std::vector<Json> MeasureServerMemory(const ChildProcess& server) {
  const client::AttentionClient client =
      Connect(server.addresses().front(), 1).front();
  Workload(OfHeads(1), 1).Call(client, 0);

  const ServingCase largest = OfHeads(kLargestHeads);
  Json peak = MeasurePeak(server, client, largest, "memory_peak");

  std::map<int64_t, std::unique_ptr<Workload>> workloads;
  const auto call_hundred = [&] {
    for (const int64_t heads : HundredCalls()) {
      auto& workload = workloads[heads];
      if (!workload) workload = std::make_unique<Workload>(OfHeads(heads), 1);
      workload->Call(client, 0);
    }
  };
  call_hundred();
  Json flat = ServingRecord(largest, "memory_flat", "tcp", 1);
  flat["resident_100_bytes"] = server.StatusBytes("VmRSS");
  for (int i = 1; i < 10; ++i) call_hundred();
  flat["resident_1000_bytes"] = server.StatusBytes("VmRSS");
  return {peak, flat};
}

Json MeasureSharedMemoryPeak(const ChildProcess& server,
                             const std::string& shm_socket) {
  const client::AttentionClient client =
      Connect(server.addresses().front(), 1).front();
  Workload(OfHeads(1), 1).Call(client, 0);

  ServingCase largest = OfHeads(kLargestHeads);
  largest.shared_memory = true;
  Workload workload(largest, 1, shm_socket);
  const int64_t idle_bytes = server.StatusBytes("VmRSS");
  server.ResetPeak();
  workload.Call(client, 0);
  // The server had not touched the pages of the region before, and keeps them
  // until it ends.
  const int64_t region_bytes = server.StatusBytes("RssShmem");
  Json peak = ServingRecord(largest, "memory_peak_shared", "tcp", 1);
  peak["idle_bytes"] = idle_bytes;
  peak["peak_bytes"] = server.StatusBytes("VmHWM") - region_bytes - idle_bytes;
  peak["region_bytes"] = region_bytes;
  peak["estimate_bytes"] =
      EstimatedPeak(client, largest, client::Transport::kSharedMemory);
  return peak;
}

}  // namespace attnd::bench

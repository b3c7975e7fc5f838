// Computes attention on memory that is shared with the server, so that no
// tensor is sent. Compares the answer with that of the same call by message,
// and times both.
//
//     attnd_shared_memory (HOST:PORT | unix:PATH) SHM_SOCKET
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "client/shared_region.h"

namespace {

using attnd::client::AttentionClient;
using attnd::client::DataType;
using attnd::client::Elements;

const std::vector<int64_t> kShape = {64, 256, 64};  // [heads, seq, head_dim]
constexpr int64_t kCount = 64 * 256 * 64;

absl::Duration Call(const AttentionClient& client,
                    const attnd::client::AttentionInputs& inputs,
                    const Elements& output) {
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < 5; ++i) {
    const absl::Time start = absl::Now();
    const auto reply = client.Attention(inputs, {.output = output});
    if (!reply.ok()) throw std::runtime_error(reply.status().ToString());
    best = std::min(best, absl::Now() - start);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("expected ADDRESS SHM_SOCKET");
  const AttentionClient client({.target = argv[1]});

  // The region has four tensors. The server reads the first three and writes
  // its answer to the last one, without a copy.
  auto region = attnd::client::RegisterRegion(argv[2], 4 * kCount * 4);
  if (!region.ok()) throw std::runtime_error(region.status().ToString());
  std::vector<Elements> parts;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 4; ++i) {
    parts.push_back(region->Allocate(DataType::kF32, kCount).value());
    std::ranges::generate(parts.back().floats(),
                          [&] { return normal(random); });
  }
  const auto shared = Call(client,
                           {.query = {parts[0], kShape},
                            .key = {parts[1], kShape},
                            .value = {parts[2], kShape}},
                           parts[3]);

  std::vector<float> output(kCount);
  const auto sent = Call(client,
                         {.query = {parts[0].floats(), kShape},
                          .key = {parts[1].floats(), kShape},
                          .value = {parts[2].floats(), kShape}},
                         output);
  const bool same = std::ranges::equal(parts[3].floats(), output);
  std::cout << "shared memory " << (same ? "same bits" : "OTHER BITS") << ", "
            << shared << "; by message " << sent << "\n";
  return same ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

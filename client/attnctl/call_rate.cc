#include "client/attnctl/call_rate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "client/attnctl/elements.h"
#include "client/attnctl/offline_estimate.h"
#include "client/shared_region.h"

namespace attnd::attnctl {
namespace {

// Has the random tensors of a call, and the memory for the answers of several
// such calls at the same time.
class RandomCall {
 public:
  static absl::StatusOr<std::unique_ptr<RandomCall>> Make(
      const client::MemoryEstimateOptions& problem, size_t answers,
      const std::string& shm_socket) {
    auto call = std::unique_ptr<RandomCall>(new RandomCall);
    ATTND_RETURN_IF_ERROR(call->Allocate(problem, answers, shm_socket));
    return call;
  }

  // Makes the call and waits. Calls that run at the same time need different
  // numbers.
  absl::Status Run(const client::AttentionClient& client, size_t answer) const {
    return client.Attention(inputs_, outputs_[answer], options_).status();
  }

 private:
  RandomCall() = default;

  absl::Status Allocate(const client::MemoryEstimateOptions& problem,
                        size_t answers, const std::string& shm_socket) {
    ATTND_ASSIGN_OR_RETURN(const CostQuery query, QueryOf(problem));
    const InputShapes shapes = InputShapesOf(query);
    const std::vector<int64_t> output =
        client::OutputShape(shapes.query, shapes.value);
    const std::vector<int64_t> lse =
        client::LseShape(shapes.query, problem.attention.layout);
    const client::DataType output_dtype =
        problem.output_dtype.value_or(problem.dtype);
    if (problem.transport == client::Transport::kSharedMemory) {
      int64_t region_bytes = 0;
      const auto add = [&](client::DataType dtype,
                           const std::vector<int64_t>& shape, int64_t copies) {
        region_bytes +=
            copies * (RegionBytes(dtype, shape) + kRegionPaddingBytes);
      };
      const auto copies = static_cast<int64_t>(answers);
      for (const auto& shape : {shapes.query, shapes.key, shapes.value}) {
        add(problem.dtype, shape, 1);
      }
      for (const auto* tensor :
           {&problem.attention.bias, &problem.attention.mask}) {
        if (*tensor) add((*tensor)->data.type(), (*tensor)->shape, 1);
      }
      add(output_dtype, output, copies);
      if (problem.return_lse) add(client::DataType::kF32, lse, copies);
      ATTND_ASSIGN_OR_RETURN(region_,
                             client::RegisterRegion(shm_socket, region_bytes));
    }
    for (const auto& [shape, tensor] :
         {std::pair(&shapes.query, &inputs_.query),
          std::pair(&shapes.key, &inputs_.key),
          std::pair(&shapes.value, &inputs_.value)}) {
      ATTND_ASSIGN_OR_RETURN(*tensor, RandomTensor(problem.dtype, *shape));
    }
    options_ = problem.attention;
    for (auto* tensor : {&options_.bias, &options_.mask}) {
      if (!*tensor) continue;
      ATTND_ASSIGN_OR_RETURN(
          *tensor, RandomTensor((*tensor)->data.type(), (*tensor)->shape));
    }
    for (size_t i = 0; i < answers; ++i) {
      client::AttentionOutputs outputs;
      ATTND_ASSIGN_OR_RETURN(outputs.output, Memory(output_dtype, output));
      if (problem.return_lse) {
        ATTND_ASSIGN_OR_RETURN(outputs.lse,
                               Memory(client::DataType::kF32, lse));
      }
      outputs_.push_back(std::move(outputs));
    }
    return absl::OkStatus();
  }

  static constexpr int64_t kRegionPaddingBytes = 64;  // for the alignment

  static int64_t RegionBytes(client::DataType dtype,
                             const std::vector<int64_t>& shape) {
    return client::ElementCount(shape).value() * client::SizeOf(dtype);
  }

  absl::StatusOr<client::Elements> Memory(client::DataType dtype,
                                          const std::vector<int64_t>& shape) {
    if (region_) {
      return region_->Allocate(dtype, client::ElementCount(shape).value());
    }
    memory_->emplace_back(static_cast<size_t>(RegionBytes(dtype, shape)));
    return client::Elements(dtype, memory_->back());
  }

  // Returns a tensor of normally distributed numbers, or a mask that hides
  // nothing, so that the server does all the work of the problem.
  absl::StatusOr<client::ConstTensor> RandomTensor(
      client::DataType dtype, const std::vector<int64_t>& shape) {
    ATTND_ASSIGN_OR_RETURN(const client::Elements elements,
                           Memory(dtype, shape));
    const std::span<std::byte> bytes = elements.bytes();
    if (dtype == client::DataType::kBool) {
      std::fill(bytes.begin(), bytes.end(), std::byte{1});
    } else {
      // The numbers repeat, because drawing all of them would take long.
      std::vector<double> numbers(1 << 16);
      for (double& number : numbers) number = normal_(rng_);
      const std::vector<std::byte> drawn = FromDoubles(dtype, numbers);
      for (size_t at = 0; at < bytes.size(); at += drawn.size()) {
        std::memcpy(&bytes[at], drawn.data(),
                    std::min(drawn.size(), bytes.size() - at));
      }
    }
    return client::ConstTensor{client::ConstElements(elements).OwnedBy(memory_),
                               shape};
  }

  std::mt19937_64 rng_{1};
  std::normal_distribution<double> normal_;
  std::optional<client::SharedRegion> region_;
  // Calls send this memory without a copy, because it has an owner.
  std::shared_ptr<std::vector<std::vector<std::byte>>> memory_ =
      std::make_shared<std::vector<std::vector<std::byte>>>();
  client::AttentionInputs inputs_;
  client::AttentionOptions options_;
  std::vector<client::AttentionOutputs> outputs_;
};

// Makes `calls` calls with all clients, and returns how long they took.
absl::StatusOr<double> TimeCalls(
    const RandomCall& call, const std::vector<client::AttentionClient>& clients,
    int64_t calls, const std::function<void(double fraction)>& on_progress) {
  std::atomic<int64_t> begun{0};
  std::mutex mutex;
  absl::Status failure;  // guarded by `mutex`
  const auto run = [&](size_t client) {
    for (int64_t i = begun++; i < calls; i = begun++) {
      if (client == 0) {
        on_progress(static_cast<double>(i) / static_cast<double>(calls));
      }
      const absl::Status status = call.Run(clients[client], client);
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      failure.Update(status);
      begun = calls;
    }
  };
  on_progress(0);
  const absl::Time start = absl::Now();
  {
    std::vector<std::jthread> others;  // joined at the end of this block
    try {
      for (size_t i = 1; i < clients.size(); ++i) others.emplace_back(run, i);
    } catch (const std::system_error& error) {
      begun = calls;
      return absl::ResourceExhaustedError(absl::StrCat(
          "attnctl cannot start a thread for each caller: ", error.what()));
    }
    run(0);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (!failure.ok()) return failure;
  return seconds;
}

}  // namespace

absl::StatusOr<CallRate> MeasureCallRate(
    const client::MemoryEstimateOptions& problem,
    const std::vector<client::AttentionClient>& clients,
    const std::string& shm_socket,
    const std::function<void(absl::string_view phase, double fraction)>&
        on_progress) {
  constexpr double kAloneSeconds = 1;
  constexpr size_t kMinAlone = 3;
  constexpr double kTogetherSeconds = 3;
  constexpr double kMinCallsPerClient = 2;
  ATTND_ASSIGN_OR_RETURN(const std::unique_ptr<RandomCall> call,
                         RandomCall::Make(problem, clients.size(), shm_socket));
  // The first calls open connections and touch new memory at both ends.
  for (size_t i = 0; i < clients.size(); ++i) {
    on_progress("warm-up",
                static_cast<double>(i) / static_cast<double>(clients.size()));
    ATTND_RETURN_IF_ERROR(call->Run(clients[i], i));
  }
  std::vector<double> alone_s;
  double spent_s = 0;
  while (alone_s.size() < kMinAlone || spent_s < kAloneSeconds) {
    on_progress("one caller",
                std::min(spent_s / kAloneSeconds,
                         static_cast<double>(alone_s.size()) / kMinAlone));
    const absl::Time start = absl::Now();
    ATTND_RETURN_IF_ERROR(call->Run(clients[0], 0));
    alone_s.push_back(absl::ToDoubleSeconds(absl::Now() - start));
    spent_s += alone_s.back();
  }
  CallRate rate;
  const auto median =
      alone_s.begin() + static_cast<std::ptrdiff_t>(alone_s.size() / 2);
  std::nth_element(alone_s.begin(), median, alone_s.end());
  rate.alone_s = *median;
  const auto callers = static_cast<double>(clients.size());
  rate.calls = static_cast<int64_t>(std::ceil(
      std::max(kMinCallsPerClient * callers, kTogetherSeconds / rate.alone_s)));
  ATTND_ASSIGN_OR_RETURN(
      const double seconds,
      TimeCalls(*call, clients, rate.calls, [&](double fraction) {
        on_progress("all callers", fraction);
      }));
  rate.calls_per_second = static_cast<double>(rate.calls) / seconds;
  return rate;
}

}  // namespace attnd::attnctl

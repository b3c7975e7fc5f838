#include "server/memory/admission.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "server/status/status_convert.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

// After this time, a client can retry a refused call. It is about the time of a
// mid-sized request: short enough to keep the workers busy, and long enough
// that retries do not take much of the workers' time.
constexpr std::chrono::milliseconds kRetryDelay{100};

}  // namespace

struct Admission::State {
  State(int64_t budget, int64_t slots, WorkspacePool* idle_pool,
        std::shared_ptr<MessageQuota> quota)
      : budget_bytes(budget),
        max_in_flight(slots),
        pool(idle_pool),
        messages(std::move(quota)) {}

  // The caller must hold `mutex`.
  absl::Status CheckOpen() const {
    if (!closed) return absl::OkStatus();
    return WithReason(
        absl::UnavailableError("the server is draining and takes no new calls"),
        kDraining);
  }

  // Changes a reservation from `held` to `wanted` bytes. The caller must hold
  // `mutex`, and must call MakeRoom after it has released `mutex`.
  absl::Status Grow(int64_t held, int64_t wanted) {
    const int64_t used_by_others = used.bytes - held;
    if (wanted <= budget_bytes - used_by_others) {
      used.bytes += wanted - held;
      return absl::OkStatus();
    }
    absl::Status refusal = WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "memory budget: the request needs ", wanted,
            " bytes, but other requests hold ", used_by_others, " of the ",
            budget_bytes, " bytes of the budget (--memory-budget-bytes)")),
        kMemoryBudget);
    if (wanted > budget_bytes) return refusal;
    return WithRetryDelay(std::move(refusal), kRetryDelay);
  }

  // Frees idle memory, so that it fits the budget beside the `used_bytes` that
  // are reserved. Call it without the mutex, because unmapping half a GiB takes
  // tens of milliseconds. A request that grows in the meantime calls this
  // itself before it allocates.
  void MakeRoom(int64_t used_bytes) const {
    if (pool != nullptr) pool->TrimTo(budget_bytes - used_bytes);
    if (messages == nullptr) return;
    messages->MakeRoom(used_bytes, pool != nullptr ? pool->idle_bytes() : 0);
  }

  const int64_t budget_bytes;
  const int64_t max_in_flight;
  WorkspacePool* const pool;
  const std::shared_ptr<MessageQuota> messages;
  std::mutex mutex;
  std::condition_variable changed;
  Usage used;
  bool closed = false;
  bool interrupted = false;
};

Admission::Reservation& Admission::Reservation::operator=(
    Reservation&& other) noexcept {
  std::swap(state_, other.state_);
  std::swap(bytes_, other.bytes_);
  std::swap(message_bytes_, other.message_bytes_);
  std::swap(has_slot_, other.has_slot_);
  return *this;
}

Admission::Reservation::~Reservation() {
  if (!state_) return;
  SetMessageShare(0);
  const std::lock_guard lock(state_->mutex);
  state_->used.bytes -= bytes_;
  if (has_slot_) --state_->used.in_flight;
  --state_->used.reservations;
  if (state_->used.reservations == 0) state_->changed.notify_all();
}

void Admission::Reservation::LeaveSlot() {
  if (!has_slot_) return;
  has_slot_ = false;
  const std::lock_guard lock(state_->mutex);
  --state_->used.in_flight;
}

void Admission::Reservation::SetMessageShare(int64_t bytes) {
  if (state_->messages == nullptr || bytes == message_bytes_) return;
  if (bytes > message_bytes_) {
    state_->messages->AddHeld(bytes - message_bytes_);
  } else {
    state_->messages->RemoveHeld(message_bytes_ - bytes);
  }
  message_bytes_ = bytes;
}

absl::Status Admission::Reservation::GrowTo(int64_t bytes) {
  if (bytes <= bytes_) return absl::OkStatus();
  std::unique_lock lock(state_->mutex);
  ATTND_RETURN_IF_ERROR(state_->Grow(bytes_, bytes));
  bytes_ = bytes;
  const int64_t used_bytes = state_->used.bytes;
  lock.unlock();
  state_->MakeRoom(used_bytes);
  return absl::OkStatus();
}

void Admission::Reservation::ShrinkTo(int64_t bytes) {
  if (bytes >= bytes_) return;
  const std::lock_guard lock(state_->mutex);
  state_->used.bytes -= bytes_ - bytes;
  bytes_ = bytes;
}

Admission::Admission(int64_t budget_bytes, int64_t max_in_flight,
                     WorkspacePool* pool,
                     std::shared_ptr<MessageQuota> messages)
    : state_(std::make_shared<State>(budget_bytes, max_in_flight, pool,
                                     std::move(messages))) {}

absl::StatusOr<Admission::Reservation> Admission::Admit(int64_t bytes) {
  std::unique_lock lock(state_->mutex);
  ATTND_RETURN_IF_ERROR(state_->CheckOpen());
  if (state_->used.in_flight >= state_->max_in_flight) {
    return WithRetryDelay(
        WithReason(absl::ResourceExhaustedError(absl::StrCat(
                       "too many requests: ", state_->used.in_flight,
                       " are running or waiting, and the server allows ",
                       state_->max_in_flight, " (--max-in-flight)")),
                   kTooManyRequests),
        kRetryDelay);
  }
  ATTND_RETURN_IF_ERROR(state_->Grow(0, bytes));
  ++state_->used.in_flight;
  ++state_->used.reservations;
  const int64_t used_bytes = state_->used.bytes;
  lock.unlock();
  state_->MakeRoom(used_bytes);
  return Reservation(state_, bytes);
}

absl::Status Admission::CheckOpen() const {
  const std::lock_guard lock(state_->mutex);
  return state_->CheckOpen();
}

void Admission::Close() {
  const std::lock_guard lock(state_->mutex);
  state_->closed = true;
}

int64_t Admission::budget_bytes() const { return state_->budget_bytes; }

int64_t Admission::max_in_flight() const { return state_->max_in_flight; }

Admission::Usage Admission::usage() const {
  const std::lock_guard lock(state_->mutex);
  return state_->used;
}

bool Admission::WaitIdle(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, timeout, [this] {
    return state_->used.reservations == 0 || state_->interrupted;
  });
  return state_->used.reservations == 0;
}

void Admission::Interrupt() {
  const std::lock_guard lock(state_->mutex);
  state_->interrupted = true;
  state_->changed.notify_all();
}

}  // namespace attnd::server

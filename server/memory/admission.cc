#include "server/memory/admission.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
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

// For how long after a call of another caller bytes are kept free for it.
constexpr std::chrono::minutes kExpectedAgain{1};

// For how long callers beyond their share get no bytes after one within its
// share was refused. Calls that end in this time make room for its next
// attempts, whose backoff begins at a tenth of it.
constexpr std::chrono::seconds kTimeToRetry{1};

}  // namespace

struct Admission::State {
  State(int64_t budget, int64_t slots, WorkspacePool* idle_pool,
        std::shared_ptr<MessageQuota> quota, Clock get_time)
      : budget_bytes(budget),
        max_in_flight(slots),
        pool(idle_pool),
        messages(std::move(quota)),
        clock(get_time) {}

  // The caller must hold `mutex`.
  absl::Status CheckOpen() const {
    if (!closed) return absl::OkStatus();
    return WithReason(
        absl::UnavailableError("the server is draining and takes no new calls"),
        kDraining);
  }

  // The next functions need `mutex`.

  // Records a call of `caller`, so that bytes are kept for it for a while.
  void Seen(uint64_t caller) {
    if (last_caller != caller) {
      other_seen = last_seen;
      last_caller = caller;
    }
    last_seen = clock();
  }

  // Returns among how many callers the budget is divided, if `caller` wants
  // bytes.
  int64_t Sharers(uint64_t caller) const {
    const auto holding = static_cast<int64_t>(callers.size());
    if (holding > 1) return holding;
    const std::optional<SteadyTime> seen =
        last_caller == caller ? other_seen : last_seen;
    return seen && clock() - *seen < kExpectedAgain ? 2 : 1;
  }

  // Returns OK if `caller` may have one more slot.
  absl::Status CheckSlot(const Usage& caller) const {
    const auto sharers = static_cast<int64_t>(callers.size());
    const bool within_share =
        caller.in_flight < max_in_flight / sharers || caller.in_flight == 0;
    const int64_t overdrawn = used.in_flight - max_in_flight;
    if (overdrawn < (within_share ? max_in_flight : 0)) return absl::OkStatus();
    std::string text = absl::StrCat("too many requests: ", used.in_flight,
                                    " are running or waiting, and the server "
                                    "allows ",
                                    max_in_flight, " (--max-in-flight)");
    if (sharers > 1) {
      absl::StrAppend(&text, ", which ", sharers, " clients share; ",
                      caller.in_flight, " are of this client",
                      within_share ? ""
                                   : ", which has to wait for some of them to "
                                     "end before it begins more");
    }
    return WithRetryDelay(
        WithReason(absl::ResourceExhaustedError(text), kTooManyRequests),
        kRetryDelay);
  }

  // Changes a reservation of `caller` from `held` to `wanted` bytes. Call
  // MakeRoom after `mutex` has been released.
  absl::Status Grow(uint64_t caller, int64_t held, int64_t wanted) {
    Usage& own = callers[caller];
    const int64_t used_by_others = used.bytes - held;
    const int64_t own_others = own.bytes - held;
    const int64_t free = budget_bytes - used_by_others;
    // The only request of a caller may take the whole budget, because it could
    // otherwise never run.
    const int64_t sharers = own_others > 0 ? Sharers(caller) : 1;
    const bool beyond_share = wanted > budget_bytes / sharers - own_others;
    const bool leaves_room = sharers > 1 && beyond_share;
    const int64_t kept_free = leaves_room ? budget_bytes / 4 : 0;
    if (wanted <= free - kept_free &&
        (!leaves_room || clock() >= others_first_until)) {
      used.bytes += wanted - held;
      own.bytes += wanted - held;
      return absl::OkStatus();
    }
    std::string text = absl::StrCat("memory budget: the request needs ", wanted,
                                    " bytes, but ");
    if (leaves_room) {
      absl::StrAppend(&text, "other requests of this client hold ", own_others,
                      ", and its share is ", budget_bytes / sharers, " of the ",
                      budget_bytes,
                      " bytes of the budget (--memory-budget-bytes) while "
                      "other clients need room; wait for some of its requests "
                      "to end");
    } else {
      absl::StrAppend(&text, "other requests hold ", used_by_others, " of the ",
                      budget_bytes,
                      " bytes of the budget (--memory-budget-bytes)");
    }
    absl::Status refusal =
        WithReason(absl::ResourceExhaustedError(text), kMemoryBudget);
    if (wanted > budget_bytes) return refusal;
    if (wanted <= budget_bytes / Sharers(caller) - own_others) {
      others_first_until = clock() + kTimeToRetry;
    }
    return WithRetryDelay(std::move(refusal), kRetryDelay);
  }

  // Gives back what a reservation of `caller` holds.
  void GiveBack(uint64_t caller, const Usage& back) {
    const auto own = callers.find(caller);
    for (Usage* const usage : {&used, &own->second}) {
      usage->bytes -= back.bytes;
      usage->in_flight -= back.in_flight;
      usage->reservations -= back.reservations;
    }
    if (own->second.reservations == 0) callers.erase(own);
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
  const Clock clock;
  std::mutex mutex;
  std::condition_variable changed;
  Usage used;
  // The callers that hold a reservation. A map that keeps its memory when it
  // is empty, so that small calls allocate nothing here.
  absl::flat_hash_map<uint64_t, Usage> callers;
  // The caller of the last call and its time, and when another caller than
  // that one last made a call.
  std::optional<uint64_t> last_caller;
  std::optional<SteadyTime> last_seen;
  std::optional<SteadyTime> other_seen;
  // Until then, callers beyond their share get no bytes.
  SteadyTime others_first_until = SteadyTime::min();
  bool closed = false;
  bool interrupted = false;
};

Admission::Reservation& Admission::Reservation::operator=(
    Reservation&& other) noexcept {
  std::swap(state_, other.state_);
  std::swap(caller_, other.caller_);
  std::swap(bytes_, other.bytes_);
  std::swap(message_bytes_, other.message_bytes_);
  std::swap(has_slot_, other.has_slot_);
  return *this;
}

Admission::Reservation::~Reservation() {
  if (!state_) return;
  SetMessageShare(0);
  const std::lock_guard lock(state_->mutex);
  state_->GiveBack(
      caller_,
      {.bytes = bytes_, .in_flight = has_slot_ ? 1 : 0, .reservations = 1});
  if (state_->used.reservations == 0) state_->changed.notify_all();
}

void Admission::Reservation::LeaveSlot() {
  if (!has_slot_) return;
  has_slot_ = false;
  const std::lock_guard lock(state_->mutex);
  state_->GiveBack(caller_, {.in_flight = 1});
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
  ATTND_RETURN_IF_ERROR(state_->Grow(caller_, bytes_, bytes));
  bytes_ = bytes;
  const int64_t used_bytes = state_->used.bytes;
  lock.unlock();
  state_->MakeRoom(used_bytes);
  return absl::OkStatus();
}

void Admission::Reservation::ShrinkTo(int64_t bytes) {
  if (bytes >= bytes_) return;
  const std::lock_guard lock(state_->mutex);
  state_->GiveBack(caller_, {.bytes = bytes_ - bytes});
  bytes_ = bytes;
}

Admission::Admission(int64_t budget_bytes, int64_t max_in_flight,
                     WorkspacePool* pool,
                     std::shared_ptr<MessageQuota> messages, Clock clock)
    : state_(std::make_shared<State>(budget_bytes, max_in_flight, pool,
                                     std::move(messages), clock)) {}

absl::StatusOr<Admission::Reservation> Admission::Admit(int64_t bytes,
                                                        uint64_t caller) {
  std::unique_lock lock(state_->mutex);
  ATTND_RETURN_IF_ERROR(state_->CheckOpen());
  state_->Seen(caller);
  Usage& own = state_->callers[caller];
  absl::Status status = state_->CheckSlot(own);
  if (status.ok()) status = state_->Grow(caller, 0, bytes);
  if (!status.ok()) {
    state_->GiveBack(caller, {});
    return status;
  }
  for (Usage* const usage : {&state_->used, &own}) {
    ++usage->in_flight;
    ++usage->reservations;
  }
  const int64_t used_bytes = state_->used.bytes;
  lock.unlock();
  state_->MakeRoom(used_bytes);
  return Reservation(state_, caller, bytes);
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

int64_t Admission::callers() const {
  const std::lock_guard lock(state_->mutex);
  return static_cast<int64_t>(state_->callers.size());
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

#include "server/payload_copy.h"

#include <algorithm>
#include <utility>

namespace attnd::server {
namespace {

// Some 20 us: long against taking a task, and many enough that workers end
// together.
constexpr int64_t kPieceBytes = int64_t{256} << 10;

}  // namespace

void PayloadCopy::Add(const PayloadRange& range, std::byte* to) {
  for (int64_t done = 0; done < range.size_bytes; done += kPieceBytes) {
    pieces_.push_back(
        {{range.offset + done, std::min(kPieceBytes, range.size_bytes - done)},
         to + done});
  }
  size_bytes_ += range.size_bytes;
}

void PayloadCopy::RunHere(const ReceivedMessage& received) {
  for (const Piece& piece : pieces_) received.CopyTo(piece.range, piece.to);
  Clear();
}

void PayloadCopy::Begin(ReceivedMessage received) {
  if (size_bytes_ <= kMaxHereBytes) {
    RunHere(received);
  } else {
    received_ = std::move(received);
  }
}

void PayloadCopy::Clear() {
  received_ = ReceivedMessage();
  pieces_ = {};
  size_bytes_ = 0;
}

std::vector<TileJob::Phase> PayloadCopy::Phases() const {
  const auto pieces = static_cast<int64_t>(pieces_.size());
  return {{.tasks = pieces, .slots = std::max<int64_t>(1, pieces)}};
}

TileJob::Slice PayloadCopy::Run(int64_t /*phase*/, int64_t task,
                                int64_t /*slot*/, SliceControl& /*control*/) {
  const Piece& piece = pieces_[static_cast<size_t>(task)];
  received_.CopyTo(piece.range, piece.to);
  return Slice::kDone;
}

}  // namespace attnd::server

// Clipping with a count, and the extremes: the twins of cpu.clip_to and of min and max.
//
// Both pass over the samples once: a sample costs its own bytes read, clip its clipped bytes
// written, and about 6 integer operations. A thread keeps AHEAD loads in flight.

namespace {

constexpr int VALUE_THREADS = 256;
constexpr int AHEAD = 4;

enum Kind { UINT8, INT8, UINT16, INT16, INT32 };

template <typename Sample, typename Use>
__device__ __forceinline__ void each_of(const void* values, long long pitch, int rows,
                                        long long columns, Use use) {
    const long long step = static_cast<long long>(gridDim.x) * VALUE_THREADS;
    for (int y = blockIdx.y; y < rows; y += gridDim.y) {
        const Sample* row =
            reinterpret_cast<const Sample*>(static_cast<const char*>(values) + y * pitch);
        for (long long x = static_cast<long long>(blockIdx.x) * VALUE_THREADS + threadIdx.x;
             x < columns; x += AHEAD * step) {
            int ahead[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                if (x + k * step < columns) ahead[k] = static_cast<int>(__ldg(row + x + k * step));
            }
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                if (x + k * step < columns) use(ahead[k], y * columns + x + k * step);
            }
        }
    }
}

template <typename Use>
__device__ __forceinline__ void each(const void* values, long long pitch, int rows,
                                     long long columns, int kind, Use use) {
    switch (kind) {
        case UINT8: each_of<unsigned char>(values, pitch, rows, columns, use); break;
        case INT8: each_of<signed char>(values, pitch, rows, columns, use); break;
        case UINT16: each_of<unsigned short>(values, pitch, rows, columns, use); break;
        case INT16: each_of<short>(values, pitch, rows, columns, use); break;
        default: each_of<int>(values, pitch, rows, columns, use);
    }
}

}  // namespace

// Clip to first..last into `out` (contiguous, of out_kind) and add to *far how many values lay
// beyond by more than slack. Any grid; block VALUE_THREADS.
extern "C" __global__ void __launch_bounds__(VALUE_THREADS)
    clip(const void* values, long long pitch, int rows, long long columns, int kind, int first,
         int last, long long slack, void* out, int out_kind, unsigned long long* far) {
    __shared__ unsigned counted;
    if (threadIdx.x == 0) counted = 0;
    __syncthreads();
    unsigned mine = 0;
    each(values, pitch, rows, columns, kind, [&](int value, long long at) {
        const int kept = min(max(value, first), last);
        // the distance can exceed an int: the difference of the bit patterns is exact
        const unsigned distance = value < kept
                                      ? static_cast<unsigned>(kept) - static_cast<unsigned>(value)
                                      : static_cast<unsigned>(value) - static_cast<unsigned>(kept);
        mine += static_cast<long long>(distance) > slack;
        if (out_kind == UINT8 || out_kind == INT8) {
            static_cast<unsigned char*>(out)[at] = static_cast<unsigned char>(kept);
        } else if (out_kind == INT32) {
            static_cast<int*>(out)[at] = kept;
        } else {
            static_cast<unsigned short*>(out)[at] = static_cast<unsigned short>(kept);
        }
    });
    if (mine) atomicAdd(&counted, mine);
    __syncthreads();
    if (threadIdx.x == 0 && counted) atomicAdd(far, static_cast<unsigned long long>(counted));
}

// Lower found[0] to the lowest value and raise found[1] to the highest. Any grid.
extern "C" __global__ void __launch_bounds__(VALUE_THREADS)
    extremes(const void* values, long long pitch, int rows, long long columns, int kind,
             int* found) {
    __shared__ int lows[VALUE_THREADS], highs[VALUE_THREADS];
    int low = 0x7fffffff, high = -0x7fffffff - 1;
    each(values, pitch, rows, columns, kind, [&](int value, long long) {
        low = min(low, value);
        high = max(high, value);
    });
    lows[threadIdx.x] = low;
    highs[threadIdx.x] = high;
    for (unsigned half = VALUE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            lows[threadIdx.x] = min(lows[threadIdx.x], lows[threadIdx.x + half]);
            highs[threadIdx.x] = max(highs[threadIdx.x], highs[threadIdx.x + half]);
        }
    }
    if (threadIdx.x == 0) {
        atomicMin(found, lows[0]);
        atomicMax(found + 1, highs[0]);
    }
}

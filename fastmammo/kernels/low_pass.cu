// One level of the integer 5/3 wavelet's low-pass band: the twin of cpu.low_pass, bit for bit
// (ISO/IEC 15444-1 Annex F.4.8.1: vertical, then horizontal, symmetric extension).
//
// A block makes LOW_ROWS x LOW_COLUMNS samples. Each thread walks down one source column, so that
// a sample is read once a block, and leaves its vertical low-pass in shared memory; then the
// horizontal pass. An output sample costs 4 source samples (8 bytes of uint16, 1.2 times that with
// the rims, which come from the L2 cache), 4 bytes written and about 30 integer operations.

namespace {

constexpr int LOW_THREADS = 256;
constexpr int LOW_COLUMNS = LOW_THREADS / 2 - 2;  // two source columns each, and a rim of 3
constexpr int LOW_ROWS = 8;

template <typename Sample>
__device__ __forceinline__ int sample_at(const void* pixels, long long pitch, int y, int x) {
    const char* row = static_cast<const char*>(pixels) + y * pitch;
    return static_cast<int>(__ldg(reinterpret_cast<const Sample*>(row) + x));
}

// Leave the vertical low-pass of column x, output rows k0.., in low[..][threadIdx.x].
template <typename Sample>
__device__ __forceinline__ void vertical(const void* pixels, long long pitch, int rows, int x,
                                         int k0, int (*low)[LOW_THREADS]) {
    const int odd_rows = rows / 2;
    int even = sample_at<Sample>(pixels, pitch, 2 * k0, x);
    int above = 0;  // the high-pass d[k - 1]
    if (k0 > 0) {
        const int before = sample_at<Sample>(pixels, pitch, 2 * k0 - 2, x);
        above = sample_at<Sample>(pixels, pitch, 2 * k0 - 1, x) - ((before + even) >> 1);
    }
#pragma unroll
    for (int r = 0; r < LOW_ROWS; ++r) {
        const int k = k0 + r;
        if (2 * k >= rows) break;
        int below = above, following = even;  // the extension mirrors d[k - 1], and the last row
        if (k < odd_rows) {
            const int odd = sample_at<Sample>(pixels, pitch, 2 * k + 1, x);
            if (2 * k + 2 < rows) following = sample_at<Sample>(pixels, pitch, 2 * k + 2, x);
            below = odd - ((even + following) >> 1);
        }
        if (k == 0) above = below;
        low[r][threadIdx.x] = even + ((above + below + 2) >> 2);
        above = below;
        even = following;
    }
}

}  // namespace

// grid (ceil(half columns / LOW_COLUMNS), any), block LOW_THREADS; out int32 (half rows, half
// columns), contiguous. `kind` as in launches.KINDS.
extern "C" __global__ void __launch_bounds__(LOW_THREADS)
    low_pass(const void* pixels, long long pitch, int rows, int columns, int kind, int* out) {
    __shared__ int low[LOW_ROWS][LOW_THREADS];
    const int half_rows = (rows + 1) / 2, half_columns = (columns + 1) / 2;
    const int odd_columns = columns / 2;
    const int j0 = blockIdx.x * LOW_COLUMNS;
    const int left = 2 * j0 - 2;  // the source column of thread 0
    const int x = left + static_cast<int>(threadIdx.x);
    for (int k0 = blockIdx.y * LOW_ROWS; k0 < half_rows; k0 += gridDim.y * LOW_ROWS) {
        if (x >= 0 && x < columns) {
            switch (kind) {
                case 0: vertical<unsigned char>(pixels, pitch, rows, x, k0, low); break;
                case 1: vertical<signed char>(pixels, pitch, rows, x, k0, low); break;
                case 2: vertical<unsigned short>(pixels, pitch, rows, x, k0, low); break;
                case 3: vertical<short>(pixels, pitch, rows, x, k0, low); break;
                default: vertical<int>(pixels, pitch, rows, x, k0, low);
            }
        }
        __syncthreads();
        for (int item = threadIdx.x; item < LOW_ROWS * (LOW_THREADS / 2); item += LOW_THREADS) {
            const int r = item / (LOW_THREADS / 2), c = item % (LOW_THREADS / 2);
            const int j = j0 + c, k = k0 + r;
            if (c >= LOW_COLUMNS || j >= half_columns || k >= half_rows) continue;
            const int* row = low[r] - left;  // indexed by source column
            const int middle = row[2 * j];
            int result = middle;
            if (columns > 1) {
                int before = 0, after = 0;  // the high-pass h[j - 1] and h[j]
                if (j > 0) before = row[2 * j - 1] - ((row[2 * j - 2] + middle) >> 1);
                if (j < odd_columns) {
                    const int following = 2 * j + 2 < columns ? row[2 * j + 2] : middle;
                    after = row[2 * j + 1] - ((middle + following) >> 1);
                }
                if (j == 0) before = after;
                if (j >= odd_columns) after = before;
                result = middle + ((before + after + 2) >> 2);
            }
            out[static_cast<long long>(k) * half_columns + j] = result;
        }
        __syncthreads();
    }
}

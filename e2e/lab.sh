# The hands-on lab of the tutorial, tasks 1 to 6, word for word. The indentation of the Python code, which its page shows
# and its text has lost, is restored. A paragraph that begins with a comment is run as one command.

# Task 1: Create and Deploy the Initial Service (Blue)
export PROJECT_ID=$(gcloud config get-value project)
export REGION=us-central1
# Enable Cloud Run API
gcloud services enable run.googleapis.com
# Create a simple app
mkdir -p /tmp/cloud-run-lab && cd /tmp/cloud-run-lab
cat > main.py << 'PYEOF'
import os
from flask import Flask, jsonify
app = Flask(__name__)
VERSION = os.environ.get("APP_VERSION", "1.0.0")
@app.route("/")
def home():
    return jsonify({
        "version": VERSION,
        "color": "blue",
        "message": f"Hello from version {VERSION}"
    })
@app.route("/health")
def health():
    return jsonify({"status": "healthy", "version": VERSION})
if __name__ == "__main__":
    port = int(os.environ.get("PORT", 8080))
    app.run(host="0.0.0.0", port=port)
PYEOF
cat > requirements.txt << 'EOF'
flask>=3.0.0
gunicorn>=21.2.0
EOF
cat > Dockerfile << 'DEOF'
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY main.py .
EXPOSE 8080
CMD ["gunicorn", "--bind", "0.0.0.0:8080", "--workers", "2", "main:app"]
DEOF
# Deploy from source
gcloud run deploy color-api \
--source=. \
--region=$REGION \
--allow-unauthenticated \
--set-env-vars="APP_VERSION=1.0.0" \
--memory=256Mi \
--cpu=1 \
--min-instances=0 \
--max-instances=5
# Get the service URL
SERVICE_URL=$(gcloud run services describe color-api \
--region=$REGION --format="value(status.url)")
echo "Service URL: $SERVICE_URL"
# Test it
curl -s $SERVICE_URL | python3 -m json.tool

# Task 2: Deploy a New Version (Green) Without Traffic
# Modify the app for v2
cat > main.py << 'PYEOF'
import os
from flask import Flask, jsonify
app = Flask(__name__)
VERSION = os.environ.get("APP_VERSION", "2.0.0")
@app.route("/")
def home():
    return jsonify({
        "version": VERSION,
        "color": "green",
        "message": f"Hello from version {VERSION} - new and improved!"
    })
@app.route("/health")
def health():
    return jsonify({"status": "healthy", "version": VERSION})
if __name__ == "__main__":
    port = int(os.environ.get("PORT", 8080))
    app.run(host="0.0.0.0", port=port)
PYEOF
# Deploy without traffic, with a "green" tag
gcloud run deploy color-api \
--source=. \
--region=$REGION \
--set-env-vars="APP_VERSION=2.0.0" \
--no-traffic \
--tag=green
# Get the tagged URL for testing
GREEN_URL=$(gcloud run services describe color-api \
--region=$REGION \
--format="value(status.traffic[1].url)" 2>/dev/null)
echo "Green URL: $GREEN_URL"
# If the above does not work, construct it manually:
# GREEN_URL="https://green---$(gcloud run services describe color-api --region=$REGION --format='value(status.url)' | sed 's|https://||')"
# Test the green revision directly
curl -s $GREEN_URL | python3 -m json.tool

# Task 3: Canary Deployment (10% to Green)
# List revisions to get their names
gcloud run revisions list --service=color-api --region=$REGION
# Get revision names
BLUE_REV=$(gcloud run revisions list --service=color-api --region=$REGION \
--format="value(REVISION)" | tail -1)
GREEN_REV=$(gcloud run revisions list --service=color-api --region=$REGION \
--format="value(REVISION)" | head -1)
echo "Blue: $BLUE_REV, Green: $GREEN_REV"
# Send 10% to green (canary)
gcloud run services update-traffic color-api \
--region=$REGION \
--to-revisions=${BLUE_REV}=90,${GREEN_REV}=10
# Verify traffic split
gcloud run services describe color-api \
--region=$REGION \
--format="yaml(status.traffic)"
# Test: run 20 requests and count blue vs green
SERVICE_URL=$(gcloud run services describe color-api \
--region=$REGION --format="value(status.url)")
for i in $(seq 1 20); do
curl -s $SERVICE_URL | python3 -c "import sys, json; print(json.load(sys.stdin)['color'])"
done | sort | uniq -c

# Task 4: Full Cutover to Green
# Send 100% traffic to the latest (green) revision
gcloud run services update-traffic color-api \
--region=$REGION \
--to-latest
# Verify
gcloud run services describe color-api \
--region=$REGION \
--format="yaml(status.traffic)"
# Test
curl -s $SERVICE_URL | python3 -m json.tool
# Should always return "green"

# Task 5: Rollback to Blue
# Instant rollback: send all traffic back to the blue revision
gcloud run services update-traffic color-api \
--region=$REGION \
--to-revisions=${BLUE_REV}=100
# Verify rollback
curl -s $SERVICE_URL | python3 -m json.tool
# Should return "blue"
# Confirm traffic configuration
gcloud run services describe color-api \
--region=$REGION \
--format="yaml(status.traffic)"

# Task 6: Clean Up
# Delete the Cloud Run service (deletes all revisions)
gcloud run services delete color-api --region=$REGION --quiet
# Clean up local files
rm -rf /tmp/cloud-run-lab
echo "Cleanup complete."
